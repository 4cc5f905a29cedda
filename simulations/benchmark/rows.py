"""What a benchmark row holds, and the table and JSON of all rows."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

WIDTH = 80
Verdict = Literal["aim", "least", "missed", "shown"]
_STYLE: dict[Verdict, str] = {"aim": "green", "least": "yellow", "missed": "bold red"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure beside what it is compared with.

    Attributes:
        name: what was measured.
        measured: the figure; for a ratio, Confed over the comparison or the other way round, as
            the name says.
        unit: of the figure.
        comparison: the other side, with its own figure.
        least: what the figure must reach; None for a row that only shows.
        aim: what it should reach.
        more_is_better: direction of `least` and `aim`.
        detail: n, spread and every raw figure behind the row.
    """

    name: str
    measured: float
    unit: str
    comparison: str = ""
    least: float | None = None
    aim: float | None = None
    more_is_better: bool = False
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """Whether the figure reached the aim, the least, or neither."""
        if self.least is None:
            return "shown"
        if not math.isfinite(self.measured):
            return "missed"
        if self.aim is not None and self._reaches(self.aim):
            return "aim"
        return "least" if self._reaches(self.least) else "missed"

    def _reaches(self, bound: float) -> bool:
        return self.measured >= bound if self.more_is_better else self.measured <= bound

    def plain(self) -> dict[str, Any]:
        """The row as JSON-ready values."""
        return {**asdict(self), "verdict": self.verdict}


def as_json(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """All rows and the settings of the run, one line of JSON."""
    return json.dumps({**settings, "rows": [row.plain() for row in rows]}, allow_nan=False)


def as_table(rows: Sequence[Row]) -> RenderableType:
    """All rows as a table of at most WIDTH columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), width=WIDTH)
    table.add_column("what, and beside it in the same run", ratio=1)
    for heading in ("measured", "at least", "aim"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in rows:
        sign = "≥" if row.more_is_better else "≤"
        bounds = ["" if b is None else f"{sign} {number(b)}" for b in (row.least, row.aim)]
        verdict = "" if row.verdict == "shown" else row.verdict
        table.add_row(
            Text.assemble(row.name, (f"\n{row.comparison}" if row.comparison else "", "dim")),
            Text(f"{number(row.measured)} {row.unit}".strip(), style="bold"),
            *(Text(bound) for bound in bounds),
            Text(verdict, style=_STYLE.get(row.verdict, "")),
        )
    return table


def number(value: float) -> str:
    """A figure with three digits that count."""
    if not math.isfinite(value):
        return "—"
    if value and abs(value) < 1e-3:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.1f} M"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"
