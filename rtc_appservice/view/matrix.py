"""Stage 7: the matrix of a call: for each sender and recipient, every key that was owed and what came of it."""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct

from rtc_appservice.core.explain import OwedKey
from rtc_appservice.core.model import DeviceRef
from rtc_appservice.core.words import Evidence, Outcome

#: More keys than this between two devices are counted, not listed.
LISTED = 8


class Key(Struct, frozen=True, kw_only=True):
    """One key that was owed."""

    outcome: Outcome
    moment: str  #: `join` or `leave`
    owed_at: datetime
    met_at: datetime | None
    waited_seconds: float | None  #: negative if it came before the moment that owed it
    evidence: Evidence
    excuse: str | None


class Cell(Struct, frozen=True, kw_only=True):
    """What one device owed another; `counts` has all, `keys` those that are listed."""

    recipient: DeviceRef
    keys: tuple[Key, ...]
    counts: tuple[tuple[Outcome, int], ...]
    itself: bool


class Sender(Struct, frozen=True, kw_only=True):
    """A row: a sender, and a cell a recipient."""

    sender: DeviceRef
    cells: tuple[Cell, ...]


class Matrix(Struct, frozen=True, kw_only=True):
    """Senders by recipients, both in one order."""

    recipients: tuple[DeviceRef, ...]
    rows: tuple[Sender, ...]
    outcomes: tuple[Outcome, ...]  #: those that occur, in their usual order


def matrix(owed: Sequence[OwedKey]) -> Matrix:
    """Arrange the keys owed in a call by sender and recipient."""
    pairs: dict[tuple[DeviceRef, DeviceRef], list[OwedKey]] = defaultdict(list)
    for key in owed:
        pairs[key.sender, key.recipient].append(key)
    devices = tuple(
        DeviceRef(user_id=user_id, device_id=device_id)
        for user_id, device_id in sorted({(each.user_id, each.device_id) for pair in pairs for each in pair})
    )
    return Matrix(
        recipients=devices,
        rows=tuple(
            Sender(
                sender=sender, cells=tuple(_cell(sender, other, pairs.get((sender, other), [])) for other in devices)
            )
            for sender in devices
        ),
        outcomes=tuple(outcome for outcome in Outcome if any(key.outcome is outcome for key in owed)),
    )


def _cell(sender: DeviceRef, recipient: DeviceRef, owed: Sequence[OwedKey]) -> Cell:
    counts = [(outcome, sum(key.outcome is outcome for key in owed)) for outcome in Outcome]
    keys = [
        Key(
            outcome=key.outcome,
            moment=key.moment,
            owed_at=key.owed_at,
            met_at=key.met_at,
            waited_seconds=None if key.met_at is None else (key.met_at - key.owed_at).total_seconds(),
            evidence=key.evidence,
            excuse=key.excuse,
        )
        for key in owed
    ]
    return Cell(
        recipient=recipient,
        keys=tuple(keys) if len(keys) <= LISTED else (),
        counts=tuple(count for count in counts if count[1]),
        itself=sender == recipient,
    )
