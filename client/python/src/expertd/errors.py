"""One exception type per gRPC code that the server answers with."""
from __future__ import annotations

from typing import Any, Dict, Optional, Type

import grpc


class ExpertdError(Exception):
    """A request failed. `code` is the gRPC code, `retry_after` (seconds) what the server asked to wait, if it did."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, message: str, *, code: Optional[grpc.StatusCode] = None, retry_after: Optional[float] = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after = retry_after
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class InvalidArgument(ExpertdError, ValueError):
    """A field is wrong; the message names field, value and limit."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ExpertdError, LookupError):
    """The server has no such layer."""

    code = grpc.StatusCode.NOT_FOUND


class FailedPrecondition(ExpertdError):
    """The layer's weights are not the ones of `expected_fingerprint`."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(ExpertdError):
    """The server is full for now; `retry_after` says when to come again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(ExpertdError, TimeoutError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(ExpertdError, ConnectionError):
    """No connection, or the layer is loading, or the server is draining."""

    code = grpc.StatusCode.UNAVAILABLE


class Cancelled(ExpertdError):
    code = grpc.StatusCode.CANCELLED


class Unauthenticated(ExpertdError):
    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ExpertdError):
    code = grpc.StatusCode.PERMISSION_DENIED


class Internal(ExpertdError):
    code = grpc.StatusCode.INTERNAL


class Unimplemented(ExpertdError):
    code = grpc.StatusCode.UNIMPLEMENTED


_TYPES: Dict[grpc.StatusCode, Type[ExpertdError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted, DeadlineExceeded, Unavailable, Cancelled,
        Unauthenticated, PermissionDenied, Internal, Unimplemented,
    )
}  # fmt: skip
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_PUSHBACK = "grpc-retry-pushback-ms"


def make_error(code: grpc.StatusCode, message: str, retry_after: Optional[float] = None) -> ExpertdError:
    return _TYPES.get(code, ExpertdError)(message, code=code, retry_after=retry_after)


def from_rpc(error: Any) -> ExpertdError:
    """A grpc.RpcError (sync or aio) as ours."""
    retry_after = None
    for key, value in error.trailing_metadata() or ():
        if key == _PUSHBACK:
            # A number that is not one, or negative, means: do not retry (gRFC A6); that is no pushback.
            retry_after = int(value) / 1000 if value.isdigit() else None
    return make_error(error.code(), error.details() or "", retry_after)


def from_stream(error: Any) -> ExpertdError:
    """The Error of a stream's answer as ours."""
    code = _CODES.get(error.code, grpc.StatusCode.UNKNOWN)
    return make_error(code, error.message, error.retry_after_us / 1e6 if error.retry_after_us else None)
