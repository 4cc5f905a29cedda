"""One self-contained HTML page of a run, for a reader who has never heard of epsilon.

The page loads nothing from anywhere: styles and pictures are inside. Every name from data goes
through jinja2's autoescape; only this module's own SVG is marked as safe.
"""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.canvas import PAGE, PHONE, to_svg
from common.durable import write_atomic
from simulations.damage_table import damage_rows, headings, title
from simulations.plots import PLOTS, save_plots
from simulations.results import (
    LABELS,
    SCOPE,
    ByMethod,
    RunResult,
    clean,
    gain,
    headlines,
    largest_epsilon,
    mean_gain,
    measured_methods,
    pairs,
    score,
    upper,
    write_results,
)

NAME: Final = "report.html"
PROMISES_NOTHING: Final = 20.0
"""From this epsilon on, a factor on the odds says nothing to a reader."""
CAPTIONS: Final = {
    "methods": (
        "NDCG@10 is 1 when what the person took next stands first in the list of ten, and 0 "
        "when it is not in it. Hollow bars read everybody's records without protection: they "
        "show what privacy costs. The solid bar is the federation."
    ),
    "gain_per_site": (
        "Each bar is one site: how much better its own subjects are served by the shared model "
        "than by one that the site trained alone, with the same protection."
    ),
    "transfer": (
        "A row is a domain that joins, a column the domain whose subjects are measured: how much "
        "they gain over their own domain federated without it. Dashed cells compare something "
        "else: the domain's federation against a site alone."
    ),
    "ndcg_by_round": (
        "Every round improves the model and costs some privacy; the upper axis says how much has "
        "been spent by then. Dashed lines are methods that do not change by round."
    ),
    "damage": (
        "The same run with the same noise, undisturbed and disturbed. Where the lines lie "
        "together, the rule by which the server joins updates bore it."
    ),
}
ACCOUNTANTS: Final = {
    "pld": "privacy loss distribution (dp-accounting)",
    "rdp": "Rényi differential privacy (dp-accounting)",
    "opacus": "Opacus, a third opinion",
}

FILES: Final = {
    "summary.json": "everything on this page, for programs",
    "metrics.csv": "every metric of every method by domain, part and site, one a row",
    **{f"{plot.name}.png": plot.title for plot in PLOTS},
}


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A plot as the page shows it, once for a wide and once for a narrow screen."""

    title: str
    caption: str
    wide: Markup
    narrow: Markup


@dataclass(frozen=True, kw_only=True)
class DamageTable:
    """What hostile or faulty sites did, as the page shows it."""

    title: str
    headings: list[str]
    rows: list[tuple[str, list[str]]]
    ended: list[str]


def render_report(result: RunResult, *, files: tuple[str, ...] = ()) -> str:
    """Return the page.

    Args:
        result: What the run found.
        files: Names of the files beside the report, which it lists and links to.
    """
    pages = Environment(
        loader=PackageLoader("simulations", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(
        three=three, percent=percent, number=number, clean=clean, label=LABELS.get, upper=upper
    )
    return pages.get_template("report.html.j2").render(
        run=result,
        private=bool(result.sites) and all(math.isfinite(s.epsilon) for s in result.sites),
        top=largest_epsilon(result),
        mean_gain=mean_gain(result),
        headlines=headlines(result),
        pairs=pairs(result),
        methods=measured_methods(result),
        slices=slice_tables(result),
        pictures=pictures(result),
        accounting=accounting_rows(result),
        epsilon_words=epsilon_words(result),
        seeded="no privacy claim" in result.claim,
        scope=SCOPE,
        command=command(result),
        files=[(name, FILES.get(name, "")) for name in files],
        gain=gain,
        score=score,
        damage=damage_of(result),
    )


def damage_of(result: RunResult) -> DamageTable | None:
    """Return the table of a disturbed run, or None where nothing disturbed it."""
    if result.damage is None:
        return None
    return DamageTable(
        title=title(result.damage),
        headings=[h.replace("\n", " ") for h in headings(result.damage)],
        rows=damage_rows(result.damage),
        ended=[o.ended for o in result.damage.outcomes if o.ended],
    )


def write_run(result: RunResult, folder: Path) -> tuple[Path, ...]:
    """Write all that a researcher looks at: summary, metrics, plots and the report.

    Raises:
        OSError: The folder cannot be written to.
    """
    written = (*write_results(result, folder), *save_plots(result, folder))
    return (*written, write_report(result, folder))


def write_report(result: RunResult, folder: Path) -> Path:
    """Write `report.html` beside whatever the folder holds already, and return its path.

    Raises:
        OSError: The folder cannot be written to.
    """
    present = sorted(p.name for p in folder.glob("[!.]*") if p.is_file() and p.name != NAME)
    path = folder / NAME
    write_atomic(path, render_report(result, files=tuple(present)).encode())
    return path


def pictures(result: RunResult) -> tuple[Picture, ...]:
    """Return the plots that the run has data for."""
    return tuple(
        Picture(
            title=plot.title,
            caption=CAPTIONS[plot.name],
            wide=Markup(to_svg(plot.draw(result, width=PAGE))),  # noqa: S704  # our own SVG
            narrow=Markup(to_svg(plot.draw(result, width=PHONE))),  # noqa: S704
        )
        for plot in PLOTS
        if plot.has_data(result)
    )


def slice_tables(result: RunResult) -> tuple[tuple[str, dict[str, ByMethod]], ...]:
    """Return (domain, part of its test subjects -> metrics), "all" first."""
    return tuple(
        (name, {"all": domain.metrics, **domain.slices}) for name, domain in result.domains.items()
    )


def accounting_rows(result: RunResult) -> tuple[tuple[str, str, str], ...]:
    """Return (what, epsilon, remark); the smaller of the two upper bounds is the reported one."""
    entries = result.accounting
    bounds = {k: v for k in ("pld", "rdp") if isinstance(v := entries.get(k), int | float)}
    best = min(bounds, key=bounds.__getitem__, default="")
    rows = []
    for key, value in entries.items():
        if key == "overlap_sites":
            continue
        remark = "reported: the smaller of two upper bounds" if key == best else ""
        rows.append((_accounting_name(result, key), number(value), remark))
    return tuple(rows)


def _accounting_name(result: RunResult, key: str) -> str:
    if key == "consortium":
        return "a subject at one site (largest over the sites)"
    if key == "consortium_overlap":
        return f"a subject at {result.accounting.get('overlap_sites', 'several')} sites (composed)"
    return ACCOUNTANTS.get(key, key.replace("_", " "))


def epsilon_words(result: RunResult) -> str:
    """Return one sentence that says what the run's epsilon means for one person."""
    top = largest_epsilon(result)
    if top is None or not math.isfinite(top.epsilon):
        return "This run trained without protection: it bounds nothing about any one person."
    if top.epsilon > PROMISES_NOTHING:
        return f"ε = {top.epsilon:.3g} is so large that it promises nothing to any one person."
    factor, chance = math.exp(top.epsilon), round(1 / top.delta) if top.delta > 0 else 0
    shown = f"{factor:.2f}" if factor < 10 else f"{math.ceil(factor):,}"
    exception = f", but for a chance of at most 1 in {chance:,}" if chance else ""
    return (
        f"ε = {upper(top.epsilon)} means for one patient or customer: whoever sees everything that "
        "left the sites can raise or lower the odds they give to this person's records having "
        f"been used by a factor of at most {shown}{exception}. A factor of 1 would be no trace at "
        "all. It is a ceiling that holds against any method, not an estimate of an attack."
    )


def command(result: RunResult) -> str:
    """Return the command line that repeats the run."""
    if "command" in result.settings:
        return result.settings["command"]
    options = {"--seed": result.seed, "--rounds": result.rounds, "--engine": result.engine}
    words = ["confed", "simulate", result.scenario]
    words += [str(word) for pair in options.items() for word in pair]
    return shlex.join(words)


def three(value: float | None) -> str:
    """Return three decimals, or a dash for what was not measured."""
    return "—" if value is None else f"{value:.3f}".replace("inf", "∞")


def percent(value: float | None) -> str:
    """Return a signed percentage, or a dash for what was not measured."""
    return "—" if value is None else f"{value:+.1%}"


def number(value: float | str) -> str:
    """Return a figure as a table shows it; text stays as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}".replace("inf", "∞")
