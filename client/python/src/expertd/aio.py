"""The asyncio client: the same calls as expertd.Client, awaited."""
from __future__ import annotations

import asyncio
import itertools
import time
from types import TracebackType
from typing import Any, AsyncIterator, Dict, List, Optional, Tuple, Type

import grpc
import grpc.aio

from .channel import Tls, Token, metadata_of, open_channels
from .errors import Cancelled, DeadlineExceeded, ExpertdError, NotFound, from_rpc
from .messages import HEALTH_CHECK, SERVICE, Answer, Request, cancel_bytes, health_request, is_serving
from .retry import Retry, RetryBudget
from .v1 import expertd_pb2 as pb

__all__ = ["Client", "Stream"]


class Client:
    """See expertd.Client. Belongs to the event loop it was made in."""

    def __init__(
        self,
        endpoint: str = "127.0.0.1:8470",
        *,
        tls: Optional[Tls] = None,
        token: Optional[Token] = None,
        retry: Optional[Retry] = None,
        connections: int = 1,
    ) -> None:
        self._channels: List[Any] = open_channels(grpc.aio, endpoint, connections, tls, token)
        self._next = itertools.count()
        self._token = token
        self._budget = RetryBudget(retry)

    async def forward(self, model: str, layer: int, rows: Any, *, timeout: Optional[float] = None, **request: Any) -> Answer:
        message = Request(model, layer, rows, **request)
        return message.answer(await self._call(SERVICE + "Forward", message.to_bytes(), pb.ForwardResponse.FromString, timeout))

    async def stream(self, max_in_flight: Optional[int] = None) -> "Stream":
        limit = max_in_flight or (await self.server_info()).max_in_flight_per_stream
        return Stream(self._channel(), metadata_of(self._token), limit)

    async def layers(self, timeout: Optional[float] = 10) -> List[Any]:
        return list((await self._call(SERVICE + "ListLayers", b"", pb.ListLayersResponse.FromString, timeout)).layers)

    async def server_info(self, timeout: Optional[float] = 10) -> Any:
        return await self._call(SERVICE + "GetServerInfo", b"", pb.GetServerInfoResponse.FromString, timeout)

    async def is_serving(self, service: str = "", timeout: Optional[float] = 10) -> bool:
        try:
            return is_serving(await self._call(HEALTH_CHECK, health_request(service), None, timeout))
        except NotFound:
            return False

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        await self.close()

    def _channel(self) -> Any:
        return self._channels[next(self._next) % len(self._channels)]

    async def _call(self, method: str, request: bytes, parse: Any, timeout: Optional[float]) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        for attempt in itertools.count(1):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise DeadlineExceeded(f"timeout: {timeout} s have passed")
            try:
                call = self._channel().unary_unary(method, request_serializer=None, response_deserializer=parse)
                response = await call(request, timeout=left, metadata=metadata_of(self._token))
            except grpc.aio.AioRpcError as rpc_error:
                error = from_rpc(rpc_error)
                wait = self._budget.wait_before(attempt, error, deadline)
                if wait is None:
                    raise error from None
                await asyncio.sleep(wait)
            else:
                self._budget.succeeded()
                return response


class Stream:
    """See expertd.Stream. `forward` is awaited for the answer; start several with asyncio.gather or create_task. Cancelling
    the task withdraws the request at the server."""

    def __init__(self, channel: Any, metadata: Tuple[Tuple[str, str], ...], max_in_flight: int) -> None:
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight={max_in_flight}: at least 1")
        self._ids = itertools.count(1)
        self._slots = asyncio.Semaphore(max_in_flight)
        self._pending: Dict[int, "asyncio.Future[Any]"] = {}
        self._end: Optional[ExpertdError] = None
        # Through a queue: gRPC ends the whole call when a task is cancelled while it writes.
        self._outbox: "asyncio.Queue[Optional[bytes]]" = asyncio.Queue()
        method = channel.stream_stream(SERVICE + "ForwardStream", request_serializer=None, response_deserializer=pb.ForwardResponse.FromString)
        self._call = method(self._requests(), metadata=metadata)
        self._reader = asyncio.ensure_future(self._read())

    async def forward(self, model: str, layer: int, rows: Any, *, timeout: Optional[float] = None, **request: Any) -> Answer:
        message = Request(model, layer, rows, **request)
        async with self._slots:
            if self._end is not None:
                raise self._end
            request_id = next(self._ids)
            pending = self._pending[request_id] = asyncio.get_running_loop().create_future()
            self._outbox.put_nowait(message.to_stream_bytes(request_id, timeout))
            try:
                return message.answer(await pending)
            except asyncio.CancelledError:
                self._outbox.put_nowait(cancel_bytes(request_id))
                raise
            finally:
                self._pending.pop(request_id, None)

    async def close(self) -> None:
        """Sends nothing more and waits for all answers. Idempotent."""
        if self._end is None:
            self._end = Cancelled("the stream is closed")
            self._outbox.put_nowait(None)
        await self._reader

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]) -> None:
        if kind is not None:
            self._call.cancel()
        await self.close()

    async def _requests(self) -> AsyncIterator[bytes]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _read(self) -> None:
        end: ExpertdError = Cancelled("the stream is closed")
        try:
            async for response in self._call:
                pending = self._pending.get(response.request_id)
                if pending is not None and not pending.done():
                    pending.set_result(response)
        except grpc.aio.AioRpcError as error:
            end = from_rpc(error)
        except asyncio.CancelledError:  # the call was cancelled, by close or by its channel
            pass
        self._end = self._end or end
        for pending in self._pending.values():
            if not pending.done():
                pending.set_exception(end)
