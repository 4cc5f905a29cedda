"""The house's canvas (`common.canvas`) under the name that the simulations import."""

from common.canvas import INK, MUTED, PAGE, PALETTE, PHONE, RULE, panels, style, to_svg, value_at

__all__ = [
    "INK",
    "MUTED",
    "PAGE",
    "PALETTE",
    "PHONE",
    "RULE",
    "panels",
    "style",
    "to_svg",
    "value_at",
]
