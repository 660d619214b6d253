"""The time that all replicas share: the API server's, as its Date header tells it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

_STEP = timedelta(seconds=2)
_EPOCH = datetime.fromtimestamp(0, UTC)


class ServerClock:
    """Follows the API server's clock; between two answers the local monotonic clock carries it on.

    The header has whole seconds, so each answer gives a lower bound; the greatest of them is soon within one round
    trip of the truth. Only an answer that can't be explained by its own way means that the clock was set: one that lies
    unread for a minute, because the process was stopped, must not take the time back by a minute. And only two answers
    that agree are believed: a single one may come from a server whose clock is wrong, and what is written down with a
    time to come keeps everything waiting until then.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._offset: timedelta | None = None
        self._doubted: timedelta | None = None

    def tick(self) -> float:
        """Tell the local monotonic time, for `sent`."""
        return self._monotonic()

    def hear(self, date: str | None, sent: float) -> None:
        """Take in the Date header of the answer to a request that was sent at `sent`."""
        if date is None:
            return
        try:
            moment = parsedate_to_datetime(date) - _EPOCH
        except (ValueError, TypeError):
            # No date at all, or one without a zone: it tells nothing.
            return
        least, most = moment - timedelta(seconds=self._monotonic()), moment - timedelta(seconds=sent)
        if self._offset is None:
            self._offset = least
        elif least - self._offset <= _STEP and self._offset - most <= _STEP:
            self._offset, self._doubted = max(self._offset, least), None
        elif self._doubted is not None and abs(least - self._doubted) <= _STEP:
            self._offset, self._doubted = least, None
        else:
            self._doubted = least

    def now(self) -> datetime:
        """Tell the server's time; before its first answer, the local time."""
        if self._offset is None:
            return datetime.now(UTC)
        return _EPOCH + timedelta(seconds=self._monotonic()) + self._offset
