"""Stage 2: recordings and the account of the device that was in the call in, what it could read of them out."""

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from olm.account import Account, OlmAccountError

from rtc_appservice.core.audit import RecordedTransaction
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.words import Device, DeviceId, GapReason, RoomId, ServerName, UserId
from rtc_appservice.errors import InputError
from rtc_appservice.intake.decrypt import Reading, open_event, open_transaction, origin_time, sealed_events
from rtc_appservice.intake.keyring import Keyring


class _AccountFile(msgspec.Struct):
    """A device and its Olm account as libolm pickles it."""

    user_id: str
    device_id: str
    pickle: str
    pickle_key: str


def load_account(path: Path) -> Keyring:
    """
    Load the account of a device from a JSON file: `user_id`, `device_id`, libolm `pickle` and its `pickle_key`.

    Raises:
        InputError: if it cannot be used; nothing of it is quoted.
    """
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_AccountFile)
        account = Account.from_pickle(found.pickle.encode(), found.pickle_key)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.MsgspecError:
        raise InputError(f"{path} is no JSON object with `user_id`, `device_id`, `pickle` and `pickle_key`") from None
    except (OlmAccountError, ValueError):
        raise InputError(f"{path}: `pickle` is no libolm account that opens with `pickle_key`") from None
    return Keyring(device=(UserId(found.user_id), DeviceId(found.device_id)), account=account)


class OpenedRecording(msgspec.Struct, frozen=True):
    """Transactions with what a device read of them, and the gaps where it could not."""

    device: Device
    homeserver: ServerName
    transactions: list[RecordedTransaction]
    gaps: list[Gap]


def open_recording(transactions: Iterable[RecordedTransaction], keyring: Keyring) -> OpenedRecording:
    """Open recorded transactions in the order they came; an event whose session came later is opened then."""
    homeserver = ServerName(keyring.device[0].partition(":")[2])
    found: list[RecordedTransaction] = []
    waiting: dict[tuple[RoomId, str], list[tuple[dict[str, Any], Reading]]] = defaultdict(list)
    lost: list[Gap] = []
    for transaction in sorted(transactions, key=lambda recorded: recorded.received_at):
        reading = open_transaction(transaction.body, keyring)
        found.append(replace(transaction, opened=reading.opened))
        lost += [_lost(homeserver, name, transaction.received_at) for name, _ in reading.unread_messages]
        events = {event["event_id"]: event for event in sealed_events(transaction.body)}
        for unread in reading.unread_events:
            waiting[(unread.room_id, unread.session_id)].append((events[unread.event_id], reading))
        for session in reading.sessions:
            for event, earlier in waiting.pop(session, ()):
                earlier.unread_events = [one for one in earlier.unread_events if one.event_id != event["event_id"]]
                open_event(event, keyring, earlier)
                if earlier.unread_events and earlier.unread_events[-1].event_id == event["event_id"]:
                    waiting[session].append((event, earlier))
    sealed = [
        _undecryptable(homeserver, room_id, [event for event, _ in events])
        for (room_id, _), events in waiting.items()
        if events
    ]
    return OpenedRecording(keyring.device, homeserver, found, [*lost, *sealed])


def _lost(homeserver: ServerName, name: str, at: datetime) -> Gap:
    return Gap(
        gap_id=f"undecryptable/{homeserver}/{name}",
        homeserver=homeserver,
        reason=GapReason.UNDECRYPTABLE,
        started_at=at,
        ended_at=at,
    )


def _undecryptable(homeserver: ServerName, room_id: RoomId, events: list[dict[str, Any]]) -> Gap:
    """Give the gap that the unread events of one Megolm session are."""
    times = [origin_time(event) for event in events]
    known = [at for at in times if at is not None]
    return Gap(
        gap_id=f"undecryptable/{homeserver}/{events[0]['event_id']}",
        homeserver=homeserver,
        reason=GapReason.UNDECRYPTABLE,
        started_at=min(known, default=None),
        ended_at=max(known, default=None),
        room_id=room_id,
    )
