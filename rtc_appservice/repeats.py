"""What happens again and again is logged now and then, with how often it happened since."""

import time
from collections.abc import Callable, Hashable

#: Long enough that an outage of hours does not fill a disk, short enough that the log says it goes on.
LINE_SECONDS = 60.0


class Repeats:
    """Counts what happens, by kind; the kinds must be few."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with nothing counted."""
        self._clock = clock
        self._counts: dict[Hashable, int] = {}
        self._logged_at: dict[Hashable, float] = {}

    def note(self, kind: Hashable) -> int | None:
        """Count one more of a kind; give how many there were since the last line if one is due, else None."""
        now = self._clock()
        count = self._counts.get(kind, 0) + 1
        if now - self._logged_at.get(kind, -LINE_SECONDS) < LINE_SECONDS:
            self._counts[kind] = count
            return None
        self._counts[kind] = 0
        self._logged_at[kind] = now
        return count
