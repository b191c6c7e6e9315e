"""Recorded transactions: lines of JSON in files become the transactions that `audit` takes."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from rtc_appservice.core.audit import RecordedTransaction
from rtc_appservice.errors import InputError

#: The name that stands for standard input.
STDIN = "-"


def read_recordings(names: Sequence[str]) -> Iterator[RecordedTransaction]:
    """
    Yield the transactions of several files, line by line; `-` is standard input.

    Raises:
        InputError: at the first line that is no transaction, with the file, the line and what to do; at the end, if
            there was no transaction at all.
    """
    found = False
    for name in names:
        try:
            with nullcontext(sys.stdin.buffer) if name == STDIN else Path(name).open("rb") as lines:
                for transaction in parse_lines(lines, "standard input" if name == STDIN else name):
                    found = True
                    yield transaction
        except OSError as error:
            raise InputError(f"{name} cannot be read: {error.strerror}") from error
    if not found:
        raise InputError(f"There are no transactions in {', '.join(names)}")


def parse_lines(lines: Iterable[bytes], name: str) -> Iterator[RecordedTransaction]:
    """Yield the transaction of each line that is not blank; InputError names `name` and the line."""
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                yield _transaction(orjson.loads(line))
            except orjson.JSONDecodeError as error:
                raise InputError(
                    f"{name}, line {number}: not JSON ({error.msg}); "
                    "each line must hold one transaction as a JSON object"
                ) from None
            except ValueError as error:
                raise InputError(f"{name}, line {number}: {error}") from None


def _transaction(record: Any) -> RecordedTransaction:
    if not isinstance(record, dict):
        raise ValueError("not a JSON object; each line must hold one with `body` and `received_at`")
    body = record.get("body")
    if not isinstance(body, dict):
        raise ValueError("`body` must be the transaction as a JSON object, as the homeserver sent it")
    return RecordedTransaction(received_at=_time(record.get("received_at", record.get("recv_ts"))), body=body)


def _time(value: Any) -> datetime:
    """Read a time in milliseconds or RFC 3339; ValueError says what is wanted."""
    try:
        if isinstance(value, str):
            at = datetime.fromisoformat(value)
            if at.tzinfo is not None:
                return at.astimezone(UTC)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise ValueError(
        "`received_at` (or `recv_ts`) must be the time the transaction came, in milliseconds since 1970 "
        "or as RFC 3339 with an offset, such as 2026-11-23T10:00:00Z"
    )
