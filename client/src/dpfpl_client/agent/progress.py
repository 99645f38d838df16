"""Lines that say how far the computing of image features is, and how long it will still take."""

import re
import time
from collections.abc import Callable
from typing import Final

__all__ = ["ImageProgress", "duration", "last_progress"]

EVERY_S: Final = 10.0
"""Lines come so far apart; the first one after a second, when something can be said about the time left."""

FIRST_S: Final = 1.0
LINE: Final = re.compile(r"^image features \d+/\d+(?:, about \d+ (?:s|min|h) left)?$", re.MULTILINE)


class ImageProgress:
    """To be called with (done, total) after every image; says a line now and then, and one at the end.

    Args:
        say: takes a line.
        clock: seconds, for tests.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._began: float | None = None
        self._first, self._next = 0, 0.0

    def __call__(self, done: int, total: int) -> None:
        """So many of the images that had to be computed are done."""
        now = self._clock()
        if self._began is None:
            self._began, self._first, self._next = now, done, now + FIRST_S
        if done == total:
            self._say(f"image features {done}/{total}")
            self._began = None  # whatever comes next is counted from its own beginning
        elif now >= self._next and done > self._first:
            left = (now - self._began) / (done - self._first) * (total - done)
            self._say(f"image features {done}/{total}, about {duration(left)} left")
            self._next = now + EVERY_S


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, rounded up to one of them."""
    for size, unit in ((1, "s"), (60, "min")):
        if seconds <= 90 * size:
            return f"{max(1, -int(-seconds // size))} {unit}"
    return f"{-int(-seconds // 3600)} h"


def last_progress(log: str) -> str:
    """The last such line in a log, or nothing."""
    found = LINE.findall(log)
    return found[-1] if found else ""
