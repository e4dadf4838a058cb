"""Owns when a call is tried again, and after what wait: the policy, the budget, and the state of one call's tries.

Plain values in and out: it sends nothing and sleeps nowhere, so that the blocking and the async client are the same.
Own code, because the usual retry libraries know neither a deadline over all tries, nor a budget over all calls, nor
writes that may have taken effect; what is left for them is a power of two.
"""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass

from client.deadline import Deadline
from client.errors import ClientError, DeadlineExceeded, InvalidCall, OutcomeUnknown
from client.failure import Failure
from client.operation import Repeat


@dataclass(frozen=True)
class Retries:
    """How often a call is tried, and how long it waits in between: `Retries(tries=1)` never tries again.

    Before try n+1 it waits a random part of `first_wait` * 2**(n-1), `longest_wait` at most, and as long as the
    server's Retry-After says besides; one of more than `longest_retry_after` seconds is not waited for.

    Over all calls of a client, tries again cost one each of a stock of `burst`, which every call that gets through
    fills up by `share`: while nothing gets through, a client soon sends no more than it would without retries.
    """

    tries: int = 4
    first_wait: float = 0.2
    longest_wait: float = 5.0
    longest_retry_after: float = 60.0
    burst: int = 10
    share: float = 0.1

    def __post_init__(self) -> None:
        waits = (self.first_wait, self.longest_wait, self.longest_retry_after, self.burst, self.share)
        if self.tries < 1 or not all(value >= 0 for value in waits):
            raise InvalidCall("Retries: expected at least one try, and nothing below zero")


class Budget:
    """The stock of tries again that all calls of a client share; safe to use from many threads."""

    def __init__(self, retries: Retries) -> None:
        self._most, self._share = float(retries.burst), retries.share
        self._stock = self._most
        self._lock = threading.Lock()

    def fill(self) -> None:
        """A call got through."""
        with self._lock:
            self._stock = min(self._most, self._stock + self._share)

    def take(self) -> bool:
        """Whether a call may be tried again; takes one if so."""
        with self._lock:
            # Ten tenths are not quite one in binary.
            if self._stock < 1 - 1e-9:
                return False
            self._stock -= 1
            return True


def wait_before(failures: int, asked: float | None, retries: Retries, draw: float) -> float:
    """Seconds before the next try after so many failures; `asked` is a Retry-After, `draw` a random part of one.

    The random part comes on top of what was asked for: a server that sends the same second to a thousand callers would
    otherwise see them all in the same moment again.
    """
    longest = min(retries.longest_wait, retries.first_wait * 2.0 ** min(failures - 1, 100))
    return (asked or 0.0) + draw * longest


class Tries:
    """One call on its way: tells after each failure how long to wait, or raises what the caller gets."""

    def __init__(
        self, repeat: Repeat, deadline: Deadline, retries: Retries, budget: Budget, where: str
    ) -> None:
        self._repeat, self._deadline, self._retries, self._budget = repeat, deadline, retries, budget
        self._where = where
        self._count = 0
        self._perhaps_done = False
        self._last: ClientError | None = None
        self.request_id = (
            f"{random.getrandbits(64):016x}"  # one for all tries: what finds them in a server's log
        )

    def begin(self) -> None:
        """Before each try. Raises DeadlineExceeded where there is no time for one."""
        if self._deadline.left() <= 0:
            raise self._over(DeadlineExceeded(f"{self._where}: no time to ask", request_id=self.request_id))
        self._count += 1

    def succeeded(self) -> None:
        """The server has answered what was asked."""
        self._budget.fill()

    def failed(self, failure: Failure) -> float:
        """Seconds to wait before the next try; raises when there is to be none."""
        error = failure.error
        if self._repeat in (Repeat.GUARDED, Repeat.UNSENT):
            self._perhaps_done |= failure.perhaps_done
        if not failure.passing:
            if not isinstance(error, DeadlineExceeded):
                self._budget.fill()  # the server is there, and says no
            raise self._over(error)
        asked: float | None = getattr(error, "retry_after", None)
        wait = wait_before(self._count, asked, self._retries, random.random())
        if (
            not self._may_repeat()
            or self._count >= self._retries.tries
            or (asked or 0.0) > self._retries.longest_retry_after
            or wait >= self._deadline.left()  # to wait for the end would only bring the answer later
            or not self._budget.take()
        ):
            raise self._over(error)
        self._last = error
        return wait

    def _may_repeat(self) -> bool:
        if self._repeat is Repeat.UNSENT:
            return not self._perhaps_done
        return self._repeat is not Repeat.NEVER

    def _over(self, error: ClientError) -> ClientError:
        """What the caller gets."""
        error.tries = self._count
        if isinstance(error, DeadlineExceeded):
            before = f"; the try before: {self._last}" if self._last is not None else ""
            whole = f"{error} ({self._deadline.seconds:g} s, tries: {self._count}{before})"
            late = DeadlineExceeded(whole, request_id=error.request_id)
            late.tries = error.tries
            error = late
        # Whatever a later try says, an earlier one may have got through: a copy that is refused because the alias has
        # moved does not say who moved it.
        return OutcomeUnknown(error) if self._perhaps_done else error
