"""The same-host fast lane on a GPU: regions of the server's device memory, whose rows are used and answered in place.

    with client.session() as session, session.create_device_region(64 << 20).map() as memory:
        tensor = torch.as_tensor(memory, device=memory.device)           # uint8, no copy: view and slice it as you like
        ...write rows at input_offset, then torch.cuda.synchronize(): the server does not see your stream...
        client.forward("qwen3-30b", 0, expertd.RegionRows(memory.region, (16, 2048), output_offset=1 << 20))
        ...the outputs are at output_offset, for every stream...

Regions end with their session. Mappings are closed before: leave the blocks in that order.
"""
from __future__ import annotations

import queue
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Optional, Tuple, Type

import grpc

from .device_memory import MappedRegion
from .errors import Unavailable, from_rpc, from_stream
from .messages import SERVICE
from .v1 import expertd_pb2 as pb


@dataclass(frozen=True)
class DeviceRegion:
    """`size` bytes on the GPU `device_uuid` ("GPU-..."). `handle` names it in requests, `ipc_handle` (64 bytes) to CUDA. Both are
    secrets: who knows them can use the region."""

    handle: int
    size: int
    ipc_handle: bytes
    device_uuid: str

    def map(self) -> MappedRegion:
        """The memory in this process. Raises RuntimeError where there is no such GPU, or no driver."""
        return MappedRegion(self)


class Session:
    """A Session call: owns its regions until it is closed. For one thread at a time."""

    def __init__(self, channel: grpc.Channel, metadata: Tuple[Tuple[str, str], ...]) -> None:
        self._requests: "queue.SimpleQueue[Optional[bytes]]" = queue.SimpleQueue()
        method = channel.stream_stream(SERVICE + "Session", request_serializer=None, response_deserializer=pb.SessionResponse.FromString)
        self._call = method(iter(self._requests.get, None), metadata=metadata)

    def create_device_region(self, size: int) -> DeviceRegion:
        """`size` bytes, rounded up to 2 MiB, all zero. Raises ExpertdError: FailedPrecondition or Unimplemented when the server
        offers none, ResourceExhausted when its budget is in use."""
        wish = pb.CreateRegion(memory=pb.CreateRegion.MEMORY_DEVICE, bytes=size)
        self._requests.put(pb.SessionRequest(create_region=wish).SerializeToString())
        try:
            response = next(self._call)
        except StopIteration:
            raise Unavailable("session: closed") from None
        except grpc.RpcError as error:
            raise from_rpc(error) from None
        if response.WhichOneof("kind") == "error":
            raise from_stream(response.error)
        made = response.region_created
        return DeviceRegion(made.handle, made.bytes, made.ipc_handle, made.device_uuid)

    def close(self) -> None:
        """Ends the session; the server frees its memory once no request uses it. Idempotent."""
        self._requests.put(None)
        try:
            for _ in self._call:
                pass
        except grpc.RpcError:
            pass  # it has ended all the same

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()
