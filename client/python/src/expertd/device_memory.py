"""Another process's device memory, mapped by the CUDA driver alone: neither torch nor the CUDA toolkit is needed."""
from __future__ import annotations

import ctypes
import uuid
from types import TracebackType
from typing import Any, Dict, Optional, Type

_LAZY_PEER_ACCESS = 1


class _IpcHandle(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_ubyte * 64)]


class _Driver:
    """libcuda, every call checked."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise RuntimeError(f"no NVIDIA driver: {error}") from None
        self._library.cuIpcOpenMemHandle_v2.argtypes = [ctypes.c_void_p, _IpcHandle, ctypes.c_uint]
        self._library.cuIpcCloseMemHandle.argtypes = [ctypes.c_uint64]
        self._library.cuCtxPushCurrent_v2.argtypes = [ctypes.c_void_p]
        self.call("cuInit", 0)

    def call(self, name: str, *arguments: Any) -> None:
        result = getattr(self._library, name)(*arguments)
        if result != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(result, ctypes.byref(text))
            raise RuntimeError(f"{name}: {(text.value or b'').decode() or result}")

    def device(self, wanted: str) -> int:
        """The number of the GPU whose UUID that is, among those that this process sees."""
        count, identity = ctypes.c_int(), (ctypes.c_ubyte * 16)()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        for number in range(count.value):
            self.call("cuDeviceGetUuid_v2", identity, number)
            if f"GPU-{uuid.UUID(bytes=bytes(identity))}" == wanted:
                return number
        raise RuntimeError(f"this process sees {count.value} GPUs, none of them is {wanted}")


class MappedRegion:
    """`region`'s memory at `pointer`, in the primary context of `device` ("cuda:0"), which torch and cupy use. They take it without a
    copy through __cuda_array_interface__, as `region.size` bytes; what they made of it must not be used after close()."""

    def __init__(self, region: Any) -> None:
        self.region = region
        self._driver = _Driver()
        self._number = self._driver.device(region.device_uuid)
        self.device = f"cuda:{self._number}"
        self._context = ctypes.c_void_p()
        self._driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._number)
        pointer = ctypes.c_uint64()
        try:
            handle = _IpcHandle.from_buffer_copy(region.ipc_handle)
            self._in_context("cuIpcOpenMemHandle_v2", ctypes.byref(pointer), handle, _LAZY_PEER_ACCESS)
        except BaseException:
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._number)
            raise
        self.pointer: int = pointer.value

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        return {"shape": (self.region.size,), "typestr": "|u1", "data": (self.pointer, False), "version": 3, "strides": None}

    def close(self) -> None:
        """Before the session. Idempotent."""
        if self.pointer:
            pointer, self.pointer = self.pointer, 0
            self._in_context("cuIpcCloseMemHandle", pointer)
            self._driver.call("cuDevicePrimaryCtxRelease_v2", self._number)

    def __enter__(self) -> "MappedRegion":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def _in_context(self, name: str, *arguments: Any) -> None:
        self._driver.call("cuCtxPushCurrent_v2", self._context)
        try:
            self._driver.call(name, *arguments)
        finally:
            self._driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))
