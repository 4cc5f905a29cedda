"""Pictures of a run: they draw, they are labelled, they cope with what is missing."""

import dataclasses
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from common.canvas import PAGE, PHONE, to_svg
from simulations.plots import (
    PLOTS,
    Plot,
    plot_gains,
    plot_methods,
    plot_rounds,
    plot_transfer,
    save_plots,
)
from simulations.results import METHODS, RunResult, SiteResult, gains
from tests.simulations.runs import run, with_site_name

RUNS = {
    "two domains": run(),
    "one domain": run("care"),
    "three domains": run("care", "bank", "retail"),
    "no baselines": run(methods=("federated",)),
    "a list of baselines": run(methods=("zero_shot", "federated", "sasrec")),
    "a hundred sites": run("care", sites=100),
}


def panels(figure: Figure) -> list[Axes]:
    return [axes for axes in figure.axes if axes.axison]


def texts(figure: Figure) -> list[str]:
    found = [t.get_text() for axes in figure.axes for t in axes.texts]
    return found + [t.get_text() for axes in figure.axes for t in axes.get_yticklabels()]


@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
@pytest.mark.parametrize("result", RUNS.values(), ids=RUNS)
def test_every_plot_labels_its_axes(plot: Plot, result: RunResult) -> None:
    figure = plot.draw(result)
    assert isinstance(figure, Figure)
    assert panels(figure)
    for axes in panels(figure):
        assert axes.get_xlabel()
        assert axes.get_ylabel() or axes is not panels(figure)[0]


def test_a_line_a_domain_with_epsilon_on_a_second_axis() -> None:
    figure = plot_rounds(run())
    assert len(panels(figure)) == 2
    for axes in panels(figure):
        (top,) = axes.child_axes
        assert "ε" in top.get_xlabel()
        labels = [float(t.get_text()) for t in top.get_xticklabels()]
        assert labels == sorted(labels)
        assert labels[-1] == pytest.approx(run().curve[-1].epsilon, abs=0.1)


def test_reference_lines_stand_at_their_values() -> None:
    axes = panels(plot_rounds(run("care")))[0]
    flat = {float(line.get_ydata()[0]) for line in axes.lines if len(line.get_ydata()) == 2}  # type: ignore[index,arg-type]
    known = run("care").domains["care"].metrics
    wanted = ("zero_shot", "popularity", "local", "central_non_private")
    assert flat == {known[method]["ndcg@10"] for method in wanted}


def test_labels_at_the_right_edge_do_not_touch() -> None:
    figure = plot_rounds(run("retail"))
    figure.draw_without_rendering()
    boxes = sorted(
        (note.get_window_extent() for note in panels(figure)[0].texts), key=lambda box: box.y0
    )
    assert len(boxes) == 5
    for below, above in pairwise(boxes):
        assert below.y1 <= above.y0 + 2


def test_without_privacy_there_is_no_epsilon_axis() -> None:
    result = run("care")
    curve = tuple(dataclasses.replace(p, epsilon=math.inf) for p in result.curve)
    assert not panels(plot_rounds(dataclasses.replace(result, curve=curve)))[0].child_axes


def test_a_bar_a_site_sorted_with_the_mean_apart() -> None:
    result = run()
    axes = panels(plot_gains(result))[0]
    widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
    ordered = [100 * value for _, value in reversed(gains(result))]
    assert widths[:-1] == pytest.approx(ordered)
    assert widths[-1] == pytest.approx(sum(ordered) / 8)


def test_a_site_that_loses_has_a_bar_left_of_zero() -> None:
    result = run("care")
    worse: SiteResult = result.sites[0]
    worse.metrics["federated"]["ndcg@10"] = worse.metrics["local"]["ndcg@10"] * 0.9
    axes = panels(plot_gains(result))[0]
    assert axes.patches[0].get_width() == pytest.approx(-10)  # type: ignore[attr-defined]
    assert axes.get_xlim()[0] < -10


def test_transfer_cells_are_in_percent_and_centred_on_zero() -> None:
    result = dataclasses.replace(
        run(), transfer={"care": {"care": 0.2, "bank": 0.03}, "bank": {"care": -0.03, "bank": 0.1}}
    )
    axes = panels(plot_transfer(result))[0]
    assert {t.get_text() for t in axes.texts} >= {"+3.0%", "-3.0%"}
    gives, takes = (axes.patches[i].get_facecolor() for i in (1, 2))
    assert gives[2] > gives[0]
    assert takes[0] > takes[2]


def test_an_unmeasured_transfer_is_a_dash() -> None:
    result = dataclasses.replace(run(), transfer={"care": {"bank": 0.03}})
    assert texts(plot_transfer(result)).count("—") == 3


def test_methods_show_all_seven_and_mark_the_ones_without_privacy() -> None:
    axes = panels(plot_methods(run("care")))[0]
    bars = axes.patches
    assert len(bars) == len(METHODS)
    hollow = [bar for bar in bars if bar.get_facecolor()[3] == 0]
    assert len(hollow) == 3


def test_a_method_missing_in_one_domain_is_a_dash() -> None:
    result = run()
    del result.domains["bank"].metrics["sasrec"]
    assert texts(plot_methods(result)).count("—") == 1


def test_plots_are_saved_as_images_wide_enough_for_a_readme(tmp_path: Path) -> None:
    paths = save_plots(run(), tmp_path)
    assert {path.name for path in paths} == {f"{plot.name}.png" for plot in PLOTS}
    for path in paths:
        with Image.open(path) as image:
            assert image.info["dpi"][0] == pytest.approx(150, abs=1)
            assert 600 <= image.width <= 1200


def test_a_plot_without_data_is_not_saved_and_an_old_one_goes(tmp_path: Path) -> None:
    (tmp_path / "transfer.png").write_bytes(b"of an earlier run")
    paths = save_plots(run(methods=("federated",)), tmp_path)
    assert {path.name for path in paths} == {"methods.png", "ndcg_by_round.png", "damage.png"}
    assert not (tmp_path / "transfer.png").exists()


@pytest.mark.parametrize("name", [r"$\frac{1}{0$", "-->", "<script>alert(1)</script>", "a\nb\x00"])
def test_a_hostile_site_name_is_drawn_as_letters(name: str) -> None:
    svg = to_svg(plot_gains(with_site_name(run(), name)))
    ET.fromstring(svg.replace("xlink:", ""))  # noqa: S314  # our own
    assert "script" not in svg
    assert "<!--" not in svg


def test_svg_takes_its_ink_from_the_page_and_repeats_byte_for_byte() -> None:
    first, second = (to_svg(plot_transfer(run(), width=PHONE)) for _ in range(2))
    assert first == second
    assert "var(--ink)" in first
    assert not re.search(r"#1b1f24|#5b6470", first)


@pytest.mark.parametrize("width", [PAGE, PHONE])
@pytest.mark.parametrize("plot", PLOTS, ids=lambda plot: plot.name)
def test_nothing_is_drawn_outside_of_the_picture(plot: Plot, width: float) -> None:
    figure = plot.draw(run(), width=width)
    figure.draw_without_rendering()
    box = figure.get_tightbbox()
    assert box.x0 >= -0.02
    assert box.x1 <= figure.get_size_inches()[0] + 0.02


def test_drawing_leaves_pyplot_alone() -> None:
    code = "import simulations.report, sys; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
