"""Stage 2: reads fields of untrusted JSON, naming the one at fault."""

from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

#: Matrix ids, state keys and device ids are at most 255 bytes; what is longer is not one.
MAX_TEXT = 255

#: The largest integer Matrix allows in events, 2^53 - 1.
_MAX_NUMBER = 2**53
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Year 9999, in milliseconds: later is no time at all.
_MAX_MS = 253_402_300_799_000


class Malformed(Exception):
    """A field has the wrong shape. Caught in `wire`, where it becomes a `rejected` observation; carries no value."""

    def __init__(self, field: str) -> None:
        """Name the field by its dotted path, e.g. `content.focus_active.type`."""
        super().__init__(field)
        self.field = field


def text(source: dict[str, Any], name: str, path: str) -> str:
    """Give a required string of at most 255 characters; raises Malformed."""
    value = source.get(name)
    if not isinstance(value, str) or len(value) > MAX_TEXT or not _is_storable(value):
        raise Malformed(f"{path}.{name}")
    return value


def optional_text(source: dict[str, Any], name: str, path: str) -> str | None:
    """Give an optional string; raises Malformed if it is there and is none."""
    return None if source.get(name) is None else text(source, name, path)


def optional_number(source: dict[str, Any], name: str, path: str) -> float | None:
    """Give an optional finite number; raises Malformed if it is there and is none."""
    value = source.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{path}.{name}")
    if not -_MAX_NUMBER < value < _MAX_NUMBER:  # NaN and the infinities included
        raise Malformed(f"{path}.{name}")
    return value


def table(source: dict[str, Any], name: str, path: str) -> dict[str, Any]:
    """Give a required object; raises Malformed."""
    value = source.get(name)
    if not isinstance(value, dict):
        raise Malformed(f"{path}.{name}")
    return value


def entries(source: dict[str, Any], name: str, path: str, *, required: bool) -> list[Any]:
    """Give an array, empty if absent and not required; raises Malformed."""
    value = source.get(name)
    if value is None and not required:
        return []
    if not isinstance(value, list):
        raise Malformed(f"{path}.{name}")
    return value


def from_ms(milliseconds: float) -> datetime | None:
    """Turn Matrix milliseconds into an aware datetime, or None where that is no time."""
    if not 0 <= milliseconds <= _MAX_MS:
        return None
    return _EPOCH + timedelta(milliseconds=milliseconds)


def optional_time(source: dict[str, Any], name: str, path: str) -> datetime | None:
    """Give an optional time from milliseconds; raises Malformed if it is there and is none."""
    number = optional_number(source, name, path)
    if number is None:
        return None
    moment = from_ms(number)
    if moment is None:
        raise Malformed(f"{path}.{name}")
    return moment


def is_id(value: Any) -> TypeGuard[str]:
    """Tell whether a value can be an identifier or another short text."""
    return isinstance(value, str) and 0 < len(value) <= MAX_TEXT and _is_storable(value)


def _is_storable(value: str) -> bool:
    """PostgreSQL takes neither NUL nor half a surrogate pair, which JSON can spell."""
    return (value.isascii() and "\0" not in value) or not any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value)
