"""When a failed call is made again. Results do not depend on the batch, so a retry gives the same bits."""
from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from typing import Optional

from .errors import ExpertdError, ResourceExhausted, Unavailable

_RETRYABLE = (Unavailable, ResourceExhausted)


@dataclass(frozen=True)
class Retry:
    """Retries of UNAVAILABLE and RESOURCE_EXHAUSTED, within the call's timeout.

    The server's pushback is waited for exactly; without one, waits are random up to `backoff * 2**attempt`, at most
    `max_backoff` (seconds). The budget is shared by all calls of a client: `budget` tokens, each retry takes one, each
    success gives `refill` back; an empty budget stops retries, so that they cannot multiply an overload.
    """

    attempts: int = 4
    backoff: float = 0.01
    max_backoff: float = 1.0
    budget: float = 10.0
    refill: float = 0.1

    def __post_init__(self) -> None:
        for field, value, least in (("attempts", self.attempts, 1), ("backoff", self.backoff, 0), ("max_backoff", self.max_backoff, 0),
                                    ("budget", self.budget, 0), ("refill", self.refill, 0)):  # fmt: skip
            if value < least:
                raise ValueError(f"Retry.{field}={value}: at least {least}")


class RetryBudget:
    """Decides for all calls of one client. Thread-safe."""

    def __init__(self, retry: Optional[Retry]) -> None:
        self._retry = retry or Retry(attempts=1)
        self._tokens = self._retry.budget
        self._lock = threading.Lock()

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(self._retry.budget, self._tokens + self._retry.refill)

    def wait_before(self, attempt: int, error: ExpertdError, deadline: Optional[float]) -> Optional[float]:
        """Seconds to wait before attempt number `attempt` (the first retry is 1); None: give up and raise `error`.

        `deadline` is of time.monotonic().
        """
        if attempt >= self._retry.attempts or not isinstance(error, _RETRYABLE):
            return None
        wait = error.retry_after
        if wait is None:
            wait = random.uniform(0, min(self._retry.max_backoff, self._retry.backoff * 2 ** (attempt - 1)))
        if deadline is not None and time.monotonic() + wait >= deadline:
            return None
        with self._lock:
            if self._tokens < 1:
                return None
            self._tokens -= 1
        return wait
