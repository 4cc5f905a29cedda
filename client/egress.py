"""The egress gate: the last code at a site before the network, and the only door.

Passes the very bytes that the ledger's release names: named float32 arrays of the expected shapes,
finite, within a public bound; nothing else.
"""

import hashlib
import json
import math

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from common.errors import SecurityRefused
from common.wire import FIGURES, Tensors


def pass_out(
    payload: bytes, *, released: str, shapes: dict[str, tuple[int, ...]], bound: float
) -> Tensors:
    """Check a payload and return what it holds.

    Args:
        payload: what training made, or what was kept of an earlier answer.
        released: SHA-256 that the ledger's release names.
        shapes: exactly the tensors that may leave, with their shapes.
        bound: largest length of all of them together.

    Raises:
        SecurityRefused: another hash, or a name, shape, dtype, a non-finite number or the length
            is not allowed.
    """
    if hashlib.sha256(payload).hexdigest() != released:
        raise SecurityRefused("Expected the bytes that were released, got others.")
    try:
        update: Tensors = load(payload)
    except SafetensorError:
        raise SecurityRefused("Expected tensors in the released bytes, got others.") from None
    if set(update) != set(shapes):
        raise SecurityRefused("Expected exactly the adapter's tensors in the update.")
    for name, value in update.items():
        if value.dtype != np.float32 or value.shape != shapes[name]:
            raise SecurityRefused(f"Expected {name} as float32 of shape {shapes[name]}.")
        if not np.isfinite(value).all():
            raise SecurityRefused(f"Expected finite numbers in {name}.")
    length = math.sqrt(sum(_squared(value) for value in update.values()))
    if length > bound:
        raise SecurityRefused("Expected an update within the public bound, got a longer one.")
    return update


def pass_out_figures(payload: bytes, *, released: str) -> dict[str, float]:
    """Check an evaluation's figures and return them.

    Raises:
        SecurityRefused: another hash, another name, or a number that is not finite.
    """
    if hashlib.sha256(payload).hexdigest() != released:
        raise SecurityRefused("Expected the bytes that were released, got others.")
    figures = json.loads(payload)
    if not isinstance(figures, dict) or set(figures) != set(FIGURES):
        raise SecurityRefused("Expected exactly the allowed figures, got others.")
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in figures.values()):
        raise SecurityRefused("Expected finite figures, got others.")
    return {name: float(figures[name]) for name in FIGURES}


def _squared(value: NDArray[np.float32]) -> float:
    # Not BLAS: its threads would wait for each other behind those of other sites.
    flat = value.reshape(-1)
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))
