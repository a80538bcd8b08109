"""bfloat16 for numpy, which has no such type: as uint16 arrays of the same shape, converted block by block."""
from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Elements converted at a time: the intermediate arrays stay in the second-level cache.
_BLOCK = 32768
_HIGH = 1  # little-endian: of a float32 seen as two uint16, the second is its bfloat16


def to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """float32 [...] -> bfloat16 bits [...], rounded to nearest even; NaN stays NaN (quiet, sign kept)."""
    source = np.ascontiguousarray(values, dtype="<f4")
    flat = source.reshape(-1)
    out = np.empty(flat.size, dtype="<u2")
    scratch = np.empty(min(_BLOCK, flat.size), dtype="<u4")
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        bits = block.view("<u4")
        rounded = scratch[: block.size]
        np.right_shift(bits, 16, out=rounded)
        np.bitwise_and(rounded, 1, out=rounded)
        np.add(rounded, 0x7FFF, out=rounded)
        np.add(rounded, bits, out=rounded)
        out[start : start + block.size] = rounded.view("<u2")[_HIGH::2]
        # Rounding carries a NaN's payload into its sign or drops it to infinity. A sum is NaN when any addend is
        # (or infinities cancel), and is the cheapest thing that says so.
        with np.errstate(invalid="ignore", over="ignore"):
            suspicious = np.isnan(np.add.reduce(block))
        if suspicious:
            nans = np.isnan(block)
            out[start : start + block.size][nans] = (bits[nans] >> 16).astype("<u2") | 0x40
    return out.reshape(source.shape)


def from_bf16(bits: NDArray[Any]) -> NDArray[np.float32]:
    """bfloat16 bits (uint16 [...]) -> float32 [...], exact."""
    out = np.zeros(bits.shape, dtype="<f4")
    out.reshape(-1).view("<u2")[_HIGH::2] = np.ascontiguousarray(bits, dtype="<u2").reshape(-1)
    return out
