"""The blocking client. expertd.aio has the same for asyncio."""
from __future__ import annotations

import itertools
import queue
import threading
import time
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Dict, List, Optional, Tuple, Type

import grpc

from .channel import Tls, Token, metadata_of, open_channels
from .errors import Cancelled, DeadlineExceeded, ExpertdError, NotFound, from_rpc
from .messages import HEALTH_CHECK, SERVICE, Answer, Request, cancel_bytes, health_request, is_serving
from .retry import Retry, RetryBudget
from .session import Session
from .v1 import expertd_pb2 as pb


class Client:
    """A server's client: thread-safe, connects when first used. `timeout`s are seconds for the whole call, retries included.

    Nothing is retried unless `retry` is given. `connections`: one is one TCP connection; large rows want several.
    """

    def __init__(
        self,
        endpoint: str = "127.0.0.1:8470",
        *,
        tls: Optional[Tls] = None,
        token: Optional[Token] = None,
        retry: Optional[Retry] = None,
        connections: int = 1,
    ) -> None:
        self._channels: List[grpc.Channel] = open_channels(grpc, endpoint, connections, tls, token)
        self._next = itertools.count()
        self._token = token
        self._budget = RetryBudget(retry)

    def forward(self, model: str, layer: int, rows: Any, *, timeout: Optional[float] = None, **request: Any) -> Answer:
        """Runs rows [..., hidden] through a layer. Keywords: those of messages.Request. Raises ExpertdError, ValueError."""
        message = Request(model, layer, rows, **request)
        response = self._call(SERVICE + "Forward", message.to_bytes(), pb.ForwardResponse.FromString, timeout)
        return message.answer(response)

    def stream(self, max_in_flight: Optional[int] = None) -> "Stream":
        """A pipelined stream. `max_in_flight`: default what the server takes."""
        limit = max_in_flight or self.server_info().max_in_flight_per_stream
        return Stream(self._channel(), metadata_of(self._token), limit)

    def session(self) -> Session:
        """The same-host fast lane (session.py): regions in the server's device memory."""
        return Session(self._channel(), metadata_of(self._token))

    def layers(self, timeout: Optional[float] = 10) -> List[Any]:
        """expertd.v1.Layer messages: every layer the server knows."""
        return list(self._call(SERVICE + "ListLayers", b"", pb.ListLayersResponse.FromString, timeout).layers)

    def server_info(self, timeout: Optional[float] = 10) -> Any:
        """expertd.v1.GetServerInfoResponse: version, features, limits."""
        return self._call(SERVICE + "GetServerInfo", b"", pb.GetServerInfoResponse.FromString, timeout)

    def is_serving(self, service: str = "", timeout: Optional[float] = 10) -> bool:
        """Health of "" (the server), "live" or "<model>/<layer>"; False for a name that the server does not know."""
        try:
            return is_serving(self._call(HEALTH_CHECK, health_request(service), None, timeout))
        except NotFound:
            return False

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        self.close()

    def _channel(self) -> grpc.Channel:
        return self._channels[next(self._next) % len(self._channels)]

    def _call(self, method: str, request: bytes, parse: Any, timeout: Optional[float]) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        for attempt in itertools.count(1):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"timeout: {timeout} s have passed")
            try:
                call = self._channel().unary_unary(method, request_serializer=None, response_deserializer=parse)
                response = call(request, timeout=left, metadata=metadata_of(self._token))
            except grpc.RpcError as rpc_error:
                error = from_rpc(rpc_error)
                wait = self._budget.wait_before(attempt, error, deadline)
                if wait is None:
                    raise error from None
                time.sleep(wait)
            else:
                self._budget.succeeded()
                return response


class Pending(Future):  # type: ignore[type-arg]
    """The Future[Answer] of a stream's request. cancel() also withdraws the request at the server."""

    def __init__(self, stream: "Stream", request_id: int, request: Request) -> None:
        super().__init__()
        self._stream, self._request_id, self.request = stream, request_id, request

    def cancel(self) -> bool:
        cancelled = super().cancel()
        if cancelled:
            self._stream._send(cancel_bytes(self._request_id))
        return cancelled


class Stream:
    """Many requests in flight on one call, answered in any order. Thread-safe. A request that fails does not end the stream."""

    def __init__(self, channel: grpc.Channel, metadata: Tuple[Tuple[str, str], ...], max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight={max_in_flight}: at least 1")
        self._ids = itertools.count(1)
        self._slots = threading.BoundedSemaphore(max_in_flight)
        self._lock = threading.Lock()
        self._pending: Dict[int, Pending] = {}
        self._end: Optional[ExpertdError] = None  # under _lock: nothing can be sent any more
        self._outbox: "queue.SimpleQueue[Optional[bytes]]" = queue.SimpleQueue()
        method = channel.stream_stream(SERVICE + "ForwardStream", request_serializer=None, response_deserializer=pb.ForwardResponse.FromString)
        self._call = method(iter(self._outbox.get, None), metadata=metadata)
        self._reader = threading.Thread(target=self._read, name="expertd-stream", daemon=True)
        self._reader.start()

    def forward(self, model: str, layer: int, rows: Any, *, timeout: Optional[float] = None, **request: Any) -> Pending:
        """Sends and returns at once, unless `max_in_flight` requests are unanswered: then it waits for one of them."""
        message = Request(model, layer, rows, **request)
        self._slots.acquire()
        with self._lock:
            if self._end is not None:
                self._slots.release()
                raise self._end
            request_id = next(self._ids)
            pending = self._pending[request_id] = Pending(self, request_id, message)
            self._outbox.put(message.to_stream_bytes(request_id, timeout))
        return pending

    def close(self) -> None:
        """Sends nothing more and waits for all answers. Idempotent."""
        with self._lock:
            if self._end is None:
                self._end = Cancelled("the stream is closed")
                self._outbox.put(None)
        self._reader.join()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if kind is not None:
            self._call.cancel()
        self.close()

    def _send(self, message: bytes) -> None:
        with self._lock:
            if self._end is None:
                self._outbox.put(message)

    def _read(self) -> None:
        end: ExpertdError = Cancelled("the stream is closed")
        try:
            for response in self._call:
                with self._lock:
                    pending = self._pending.pop(response.request_id, None)
                if pending is not None:
                    self._slots.release()
                    _settle(pending, response)
        except grpc.RpcError as error:
            end = from_rpc(error)
        with self._lock:
            self._end = self._end or end
            unanswered = list(self._pending.values())
            self._pending.clear()
        self._outbox.put(None)  # ends the sender
        for pending in unanswered:
            self._slots.release()
            if pending.set_running_or_notify_cancel():
                pending.set_exception(end)


def _settle(pending: Pending, response: Any) -> None:
    if not pending.set_running_or_notify_cancel():
        return
    try:
        answer = pending.request.answer(response)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is this request's, and the reader goes on
        pending.set_exception(error)
    else:
        pending.set_result(answer)


