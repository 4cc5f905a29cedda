import math
from pathlib import Path

import numpy as np

from simulations.empirical.canaries import canaries_of, one_run
from simulations.empirical.findings import NOT_A_PROOF
from simulations.empirical.lira import Attack
from simulations.empirical.plots import plot_canaries, plot_roc, write_png
from simulations.empirical.product import Product


def attacks() -> tuple[Attack, Attack]:
    draw = np.random.default_rng(0)
    member = draw.integers(0, 2, 300).astype(bool)
    noise = draw.standard_normal(300)
    return (
        Attack(epsilon=2.0, scores=noise, member=member),
        Attack(epsilon=math.inf, scores=noise + 4 * member, member=member),
    )


def test_a_panel_a_claim_with_both_groups_found_and_claimed() -> None:
    grid = canaries_of(200)
    runs = [one_run(Product(), grid, epsilon=e, seed=s) for e in (1.0, 2.0) for s in (0, 1)]
    figure = plot_canaries(runs)
    assert [axes.get_title(loc="left")[:6] for axes in figure.axes] == [
        "ε = 1:",
        "ε = 2:",
    ]
    for axes in figure.axes:
        legend = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(legend) == 4
        assert "2 runs" in axes.get_title(loc="left")
    assert NOT_A_PROOF in figure.get_supxlabel()


def test_the_roc_is_on_log_axes_with_the_bound() -> None:
    private, control = attacks()
    (axes,) = plot_roc(private, control).axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    lines = {line.get_label(): line for line in axes.lines}
    bound = next(line for label, line in lines.items() if label.startswith("most that"))
    x, y = (np.asarray(v, float) for v in bound.get_data())
    assert np.allclose(y, np.minimum(1, math.exp(2.0) * x + 1e-5))
    assert len(lines) == 4


def test_a_picture_is_written_whole(tmp_path: Path) -> None:
    path = write_png(plot_roc(*attacks()), tmp_path / "new" / "roc.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]
