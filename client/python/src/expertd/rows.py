"""The caller's arrays as the bytes of a request, and an answer's bytes as the caller's kind of array. Never per element.

| the caller passes                       | on the wire          | the answer is                          |
|-----------------------------------------|----------------------|----------------------------------------|
| numpy float32                           | f32, or bf16 (dtype) | numpy float32                          |
| numpy uint16 with dtype="bf16"          | bf16                 | numpy uint16 (f32 asked for: float32)  |
| numpy of ml_dtypes.bfloat16             | bf16                 | ml_dtypes.bfloat16 (or float32)        |
| torch float32, bfloat16, on any device  | as it is (dtype)     | torch, same device                     |
| RegionRows                              | only where they are  | None: it is in the region              |
"""
from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple

import numpy as np

from .bf16 import from_bf16, to_bf16

F32, BF16 = "f32", "bf16"
ITEM_BYTES = {F32: 4, BF16: 2}
Restore = Callable[[bytes, str, Tuple[int, ...]], Any]

if sys.byteorder != "little":
    raise ImportError("expertd: rows are little-endian on the wire, and this machine is not")


@dataclass(frozen=True)
class Payload:
    """Rows of a request. `restore(bytes, wire dtype, shape)` makes the caller's kind of array of an answer."""

    data: memoryview
    dtype: str
    shape: Tuple[int, ...]  # [..., hidden]
    restore: Restore

    @property
    def rows(self) -> int:
        return int(np.prod(self.shape[:-1], dtype=np.int64))


@dataclass(frozen=True)
class RegionRows:
    """In place of rows: [..., hidden] of `dtype` at `input_offset` of the region, outputs at `output_offset`. Both are multiples of
    64, and the ranges are apart. The memory is the server's until the request is answered; Answer.output is None."""

    region: Any  # DeviceRegion, or what has its handle
    shape: Tuple[int, ...]
    dtype: str = "bf16"
    input_offset: int = 0
    output_offset: int = 0

    @property
    def payload(self) -> Payload:
        if self.dtype not in (F32, BF16) or len(self.shape) < 2:
            raise ValueError(f"rows: shape {self.shape} of {self.dtype}, expected [..., hidden] of f32 or bf16")
        return Payload(memoryview(b""), self.dtype, tuple(self.shape), lambda data, wire, shape: None)


def _is_torch(array: Any) -> bool:
    return type(array).__module__.partition(".")[0] == "torch" or hasattr(array, "untyped_storage")


def pack_rows(array: Any, dtype: Optional[str]) -> Payload:
    """`dtype`: "f32", "bf16", or None for what the array is."""
    if dtype not in (None, F32, BF16):
        raise ValueError(f"dtype={dtype!r}: f32 or bf16")
    if len(getattr(array, "shape", ())) < 2:
        raise ValueError(f"rows: shape {tuple(getattr(array, 'shape', ()))}, expected [..., hidden] of two or more dimensions")
    return _pack_torch(array, dtype) if _is_torch(array) else _pack_numpy(np.asarray(array), dtype)


def _bytes_view(array: Any) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _pack_numpy(array: Any, dtype: Optional[str]) -> Payload:
    shape, kind = tuple(array.shape), array.dtype
    if kind == np.float32:
        wire = dtype or F32
        return Payload(_bytes_view(to_bf16(array) if wire == BF16 else array), wire, shape, _restore_float32)
    if kind == np.uint16 and dtype == BF16:
        return Payload(_bytes_view(array), BF16, shape, _restore_bits)
    if kind.name == "bfloat16":
        if dtype == F32:
            return Payload(_bytes_view(from_bf16(array.view(np.uint16))), F32, shape, _restore_float32)
        return Payload(_bytes_view(array.view(np.uint16)), BF16, shape, lambda data, w, s: _restore_bits(data, w, s, kind))
    raise ValueError(f"rows: numpy {kind}, expected float32, ml_dtypes.bfloat16, or uint16 together with dtype='bf16'")


def _restore_float32(data: bytes, wire: str, shape: Tuple[int, ...]) -> Any:
    if wire == BF16:
        return from_bf16(np.frombuffer(data, dtype="<u2").reshape(shape))
    return np.frombuffer(bytearray(data), dtype="<f4").reshape(shape)


def _restore_bits(data: bytes, wire: str, shape: Tuple[int, ...], kind: Any = np.uint16) -> Any:
    return np.frombuffer(bytearray(data), dtype=kind if wire == BF16 else "<f4").reshape(shape)


def _pack_torch(tensor: Any, dtype: Optional[str]) -> Payload:
    import torch

    names = {torch.float32: F32, torch.bfloat16: BF16}
    types = {name: kind for kind, name in names.items()}
    if tensor.dtype not in names:
        raise ValueError(f"rows: {tensor.dtype}, expected torch.float32 or torch.bfloat16")
    device, wire = tensor.device, dtype or names[tensor.dtype]

    def restore(data: bytes, answered: str, shape: Tuple[int, ...]) -> Any:
        if not data:
            return torch.empty(shape, dtype=types[answered], device=device)
        return torch.frombuffer(bytearray(data), dtype=types[answered]).reshape(shape).to(device)

    host = tensor.detach().to(device="cpu", dtype=types[wire]).contiguous()
    # numpy knows no bfloat16: the same memory as uint8.
    return Payload(memoryview(host.reshape(-1).view(torch.uint8).numpy()), wire, tuple(tensor.shape), restore)


def pack_routing(array: Any, rows: int, field: str, kind: str) -> Tuple[memoryview, int]:
    """Ids ("<i4") or weights ("<f4") [..., k] of `rows` rows, and k."""
    if _is_torch(array):
        import torch

        host = array.detach().to("cpu")
        array = (host.float() if host.dtype == torch.bfloat16 else host).numpy()
    array = np.asarray(array)
    if array.ndim < 2 or array.size != rows * array.shape[-1]:
        raise ValueError(f"{field}: shape {tuple(array.shape)}, expected [{rows}, k] for {rows} rows")
    if (array.dtype.kind in "iu") != (kind == "<i4"):
        raise ValueError(f"{field}: {array.dtype}, expected {'integers' if kind == '<i4' else 'floats'}")
    if kind == "<i4" and array.size and (array.min() < -(2**31) or array.max() >= 2**31):
        raise ValueError(f"{field}: value beyond 32 bits")
    return _bytes_view(array.astype(kind, copy=False)), int(array.shape[-1])
