"""How a figure about privacy is written: upper bounds are rounded up, never to the nearest."""

import math
import re


def upper(value: float, decimals: int = 4) -> str:
    """An upper bound with so many decimals, rounded up; infinity as a sign."""
    if not math.isfinite(value):
        return "∞"
    shift = 10**decimals
    # Floats are a hair off their decimals; 1e-9 keeps 2.5 from becoming 2.5001.
    return f"{math.ceil(value * shift - 1e-9) / shift:.{decimals}f}"


def lower(value: float, decimals: int = 4) -> str:
    """What is left under a bound, rounded down."""
    shift = 10**decimals
    return f"{math.floor(value * shift + 1e-9) / shift:.{decimals}f}"


def small(value: float) -> str:
    """A delta or another small number, three digits that count, without needless zeros."""
    return re.sub(r"e-0?(\d+)$", r"e-\1", f"{value:.3g}")
