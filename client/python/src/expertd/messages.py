"""Requests as bytes, answers as Python values."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Optional, Tuple

import numpy as np

from .errors import ExpertdError, from_stream
from .rows import Payload, RegionRows, pack_routing, pack_rows
from .v1 import expertd_pb2 as pb

SERVICE = "/expertd.v1.Expertd/"
_WIRE = {"f32": pb.DTYPE_F32, "bf16": pb.DTYPE_BF16}
_NAMES = {value: name for name, value in _WIRE.items()}
_LENGTH_DELIMITED = 2
_HIDDEN_STATES = pb.ForwardRequest.DESCRIPTOR.fields_by_name["hidden_states"].number
_FORWARD = pb.StreamRequest.DESCRIPTOR.fields_by_name["forward"].number


@dataclass(frozen=True)
class Stages:
    """Where the server's time went, in microseconds."""

    decode: float
    queue: float
    stage_in: float
    route: float
    gemm: float
    combine: float
    stage_out: float
    total: float


@dataclass(frozen=True)
class Routing:
    """The experts that were used: numpy int32 and float32 [rows, k]."""

    topk_ids: Any
    topk_weights: Any


@dataclass(frozen=True)
class Answer:
    """`output` is of the caller's kind and shape (rows.py)."""

    output: Any
    stages: Stages
    batch_rows: int
    batch_requests: int
    fingerprint: str
    routing: Optional[Routing]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, length: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


class Request:
    """One Forward. Raises ValueError for arrays that no server would take; everything else is the server's to check."""

    def __init__(
        self,
        model: str,
        layer: int,
        rows: Any,
        *,
        topk_ids: Any = None,
        topk_weights: Any = None,
        dtype: Optional[str] = None,
        output_dtype: Optional[str] = None,
        shared_expert: Optional[bool] = None,
        return_routing: bool = False,
        priority: int = 0,
        traceparent: str = "",
        expected_fingerprint: str = "",
    ) -> None:
        self.region: Optional[RegionRows] = rows if isinstance(rows, RegionRows) else None
        self.payload: Payload = self.region.payload if self.region else pack_rows(rows, dtype)
        if output_dtype not in (None, *_WIRE):
            raise ValueError(f"output_dtype={output_dtype!r}: f32 or bf16")
        self.head = pb.ForwardRequest(
            model=model, layer=layer, rows=self.payload.rows, dtype=_WIRE[self.payload.dtype],
            return_routing=return_routing, priority=priority, traceparent=traceparent, expected_fingerprint=expected_fingerprint,
        )  # fmt: skip
        if self.region is not None:
            self.head.region.handle = self.region.region.handle
            self.head.region.input_offset = self.region.input_offset
            self.head.region.output_offset = self.region.output_offset
        if output_dtype is not None:
            self.head.output_dtype = _WIRE[output_dtype]
        if shared_expert is not None:
            self.head.shared_expert = shared_expert
        if (topk_ids is None) != (topk_weights is None):
            raise ValueError("topk_ids and topk_weights come together")
        if topk_ids is not None:
            ids, k = pack_routing(topk_ids, self.payload.rows, "topk_ids", "<i4")
            weights, weights_k = pack_routing(topk_weights, self.payload.rows, "topk_weights", "<f4")
            if k != weights_k:
                raise ValueError(f"topk_weights: k={weights_k}, but topk_ids has k={k}")
            self.head.routing.k = k
            self.head.routing.topk_ids = bytes(ids)
            self.head.routing.topk_weights = bytes(weights)

    def to_bytes(self) -> bytes:
        """ForwardRequest. The rows are copied once: fields may be concatenated, so only the head goes through protobuf."""
        return b"".join(self._parts())

    def to_stream_bytes(self, request_id: int, timeout: Optional[float]) -> bytes:
        """StreamRequest.forward. `timeout`: what is left, seconds."""
        self.head.request_id = request_id
        self.head.timeout_us = 0 if timeout is None else max(1, int(timeout * 1e6))
        parts = self._parts()
        return b"".join((_field(_FORWARD, sum(len(part) for part in parts)), *parts))

    def _parts(self) -> Tuple[Any, ...]:
        if self.region is not None:
            return (self.head.SerializeToString(),)
        data = self.payload.data
        return (self.head.SerializeToString(), _field(_HIDDEN_STATES, len(data)), data)

    def answer(self, response: Any) -> Answer:
        """ForwardResponse -> Answer; raises the error that it may hold."""
        if response.WhichOneof("kind") == "error":
            raise from_stream(response.error)
        result = response.result
        dtype = _NAMES.get(result.dtype)
        if dtype is None:
            raise ExpertdError(f"the answer's dtype {result.dtype} is not known to this client")
        routing = None
        if result.HasField("routing"):
            shape = (result.rows, result.routing.k)
            routing = Routing(
                np.frombuffer(result.routing.topk_ids, "<i4").reshape(shape), np.frombuffer(result.routing.topk_weights, "<f4").reshape(shape)
            )
        stages = Stages(**{field.name: getattr(result.stages, field.name) for field in fields(Stages)})
        output = self.payload.restore(result.output, dtype, self.payload.shape)
        return Answer(output, stages, result.batch_rows, result.batch_requests, result.fingerprint, routing)


def cancel_bytes(request_id: int) -> bytes:
    return bytes(pb.StreamRequest(cancel=pb.Cancel(request_id=request_id)).SerializeToString())


# The standard health service has two messages of one field each; its package would be one more dependency with a version.
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"


def health_request(service: str) -> bytes:
    name = service.encode()
    return _field(1, len(name)) + name


def is_serving(response: bytes) -> bool:
    return response == _SERVING
