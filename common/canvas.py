"""What every picture shares: palette, panels, axes without junk, and SVG that follows the page.

Figures are built through matplotlib's object interface and rendered by Agg or SVG: no pyplot,
no state shared between runs. Sizes are in inches; 8 in is a page, 4.2 in a phone.
"""

import io
import math
import re
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK: Final = "#1b1f24"
MUTED: Final = "#5b6470"
RULE: Final = "#b9c0c8"
PALETTE: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b27d00", "#3a9bd6")
"""Okabe and Ito's colours, which people with any colour vision tell apart; the last two darker."""
LIMIT: Final = "#b3261e"
"""What must not be passed."""
PAGE: Final = 8.0
PHONE: Final = 4.2


def panels(
    count: int, *, width: float, height: float, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure with that many panels, side by side on a page, stacked on a phone."""
    columns = 1 if width < PAGE else min(max(count, 1), 2)
    rows = max(math.ceil(count / columns), 1)
    figure = Figure(figsize=(width, height * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=share).ravel().tolist()
    for spare in grid[count:]:
        spare.set_axis_off()
    return figure, grid[:count]


def style(axes: Axes, *, title: str = "", colour: str = INK, grid: str = "y") -> None:
    """Leave the data and what is needed to read it."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(labelsize=10, colors=RULE, labelcolor=INK)
    axes.xaxis.label.set(size=10, color=INK)
    axes.yaxis.label.set(size=10, color=INK)
    axes.set_axisbelow(True)
    if grid in ("x", "y"):
        axes.grid(axis="x" if grid == "x" else "y", color=RULE, alpha=0.4, linewidth=0.7)
    if title:
        text = axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=colour)
        text.set_parse_math(False)


def value_at(axes: Axes, value: float, spot: float, text: str) -> None:
    """Write a horizontal bar's value just outside its end."""
    axes.annotate(
        text,
        xy=(value, spot),
        xytext=(4 if value >= 0 else -4, 0),
        textcoords="offset points",
        ha="left" if value >= 0 else "right",
        va="center",
        fontsize=9,
        color=INK,
    )


def to_svg(figure: Figure, *, themed: bool = True) -> str:
    """Return the figure as an `<svg>` element.

    Args:
        figure: what to draw.
        themed: let its ink follow the page's colours; a PDF has colours of its own.
    """
    text = io.StringIO()
    quiet = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "confed"}):
        figure.savefig(text, format="svg", transparent=True, metadata=quiet)
    svg = text.getvalue()
    svg = re.sub(r"<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    named = {INK: "ink", MUTED: "muted", RULE: "rule", PALETTE[0]: "blue", LIMIT: "bad"}
    for colour, variable in named.items() if themed else ():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
