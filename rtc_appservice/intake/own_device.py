"""
Stage 2: the service's own device as transactions meet it: its keys from the store, and back with what they opened.

Its row is held from the first look at its keys until the commit, so that two transactions, or one and `/sync`, never
step a ratchet twice. Nothing is kept in memory in between: what is not committed has not happened.
"""

import hashlib
import hmac
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from olm.account import Account, OlmAccountError
from olm.group_session import InboundGroupSession
from olm.session import Session

from rtc_appservice.core.keyed import Keyed
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.rollup import Increment, event_increments, message_increments
from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import Device, EventId, GapReason, RoomId, ServerName, UserId
from rtc_appservice.errors import RtcAppserviceError
from rtc_appservice.intake.decrypt import Reading, messages_for, sealed_events
from rtc_appservice.intake.device_keys import SealedBy
from rtc_appservice.intake.keyring import (
    MAX_OLM_SESSIONS,
    MAX_OLM_SESSIONS_OF_USER,
    Keyring,
    MegolmSession,
    Place,
    message_id,
)
from rtc_appservice.store import crypto, totals, undecryptable
from rtc_appservice.store.crypto import IndexRow, MegolmRow
from rtc_appservice.store.gaps import record_gaps
from rtc_appservice.store.pool import Connection
from rtc_appservice.store.undecryptable import UnreadRow

_TO_DEVICE = ("to_device", "de.sorunome.msc2409.to_device")


class OtherSecret(RtcAppserviceError):
    """The keys of the service's device are encrypted in the database under another deployment secret."""

    def __str__(self) -> str:
        """Say what to do, too."""
        return (
            f"{self.__doc__} Give `secret` or `secret_file` the value it had before; or run `rtc-appservice "
            "new-device`, which forgets those keys: the service then makes another device when it starts."
        )


def pickle_key(secret: bytes) -> str:
    """Derive from the deployment secret the key that Olm state is encrypted with in the store."""
    return hmac.new(secret, b"olm pickle", hashlib.sha256).hexdigest()


class OwnDevice:
    """The device, and the rooms it is in."""

    def __init__(self, homeserver: ServerName, homeserver_id: int, device: Device, secret: bytes) -> None:
        """Take the device and the deployment secret, which encrypts its keys in the store."""
        self._homeserver = homeserver
        self._homeserver_id = homeserver_id
        self._pickle_key = pickle_key(secret)
        self._keyed = Keyed(secret)
        self.device = device
        self.identity_key = ""  #: known once the device is loaded
        self.rooms: set[RoomId] = set()

    def new_account(self) -> str:
        """Make an Olm account, pickled."""
        return self.pickle(Account())

    def pickle(self, part: Any) -> str:
        """Pickle an account or a session."""
        return str(part.pickle(self._pickle_key).decode())

    def account(self, pickle: str) -> Any:
        """Give the Olm account of a pickle; raises OtherSecret."""
        try:
            return Account.from_pickle(pickle.encode(), self._pickle_key)
        except OlmAccountError as error:
            raise OtherSecret from error

    def is_for(self, message: Any) -> bool:
        """Tell whether a to-device message is for the device."""
        return isinstance(message, dict) and (message.get("to_user_id"), message.get("to_device_id")) == self.device

    def concerns(self, body: dict[str, Any]) -> bool:
        """Tell whether a transaction holds something for the device, or sealed in a room it is in."""
        if any(self.is_for(message) for name in _TO_DEVICE for message in _dicts(body.get(name))):
            return True
        return any(event["room_id"] in self.rooms for event in sealed_events(body))

    def without_messages(self, body: dict[str, Any]) -> dict[str, Any]:
        """Give a transaction without what it holds for the device alone."""
        kept = {
            name: [message for message in body[name] if not self.is_for(message)]
            for name in _TO_DEVICE
            if isinstance(body.get(name), list)
        }
        return {**body, **kept}

    async def load(self, conn: Connection, body: dict[str, Any]) -> Keyring:
        """Give the keys a transaction asks for; they are held until the database transaction ends."""
        row = await crypto.lock_device(conn, self._homeserver_id, self.device)
        keyring = Keyring(device=self.device, account=self.account(row.account))
        messages = list(messages_for(body, self.device, keyring.identity_key))
        for sender_key, pickle in await crypto.load_olm_sessions(
            conn, self._homeserver_id, {message.sender_key for message in messages}
        ):
            session = Session.from_pickle(pickle.encode(), self._pickle_key)
            keyring.olm_sessions.setdefault(sender_key, []).append(session)
        ids = [message_id(message.text) for message in messages]
        keyring.messages = await crypto.load_taken(conn, self._homeserver_id, ids)
        wanted = {
            (RoomId(event["room_id"]), str(event["content"]["session_id"]), UserId(event["sender"]))
            for event in sealed_events(body)
        }
        for known in await crypto.load_megolm_sessions(conn, self._homeserver_id, wanted):
            claims = keyring.megolm_sessions.setdefault((known.room_id, known.session_id), {})
            claims[known.owner] = MegolmSession(
                InboundGroupSession.from_pickle(known.pickle.encode(), self._pickle_key),
                known.owner,
                known.sender_key,
                SealedBy(known.device_id, known.trust),
            )
        for place in await crypto.load_indices(conn, self._homeserver_id, {session_id for _, session_id, _ in wanted}):
            places = keyring.indices.setdefault((place.session_id, place.index), {})
            places[place.owner] = Place(place.event_id, place.event_at)
        return keyring

    async def save(
        self, conn: Connection, body: dict[str, Any], keyring: Keyring, reading: Reading, at: datetime
    ) -> None:
        """Write what opening changed, what could not be opened and what both add to the totals: the caller commits."""
        changes, homeserver_id = keyring.changes, self._homeserver_id
        if changes.account:
            await crypto.save_account(conn, homeserver_id, self.pickle(keyring.account))
        if changes.olm_sessions:
            sessions = [(*key, self.pickle(session)) for key, session in changes.olm_sessions.items()]
            await crypto.save_olm_sessions(
                conn, homeserver_id, sessions, at, MAX_OLM_SESSIONS, MAX_OLM_SESSIONS_OF_USER
            )
        if changes.megolm_sessions:
            await crypto.save_megolm_sessions(conn, homeserver_id, self._rows(changes.megolm_sessions.items()), at)
        if changes.indices:
            rows = [IndexRow(*key, *place) for key, place in changes.indices.items()]
            await crypto.save_indices(conn, homeserver_id, rows, at)
        if changes.messages:
            await crypto.save_taken(conn, homeserver_id, changes.messages, at)
        added = await self._note_events(conn, body, keyring, reading, at)
        added += await self._note_messages(conn, body, keyring, reading, at)
        await totals.add(conn, homeserver_id, added)

    async def _note_events(
        self, conn: Connection, body: dict[str, Any], keyring: Keyring, reading: Reading, at: datetime
    ) -> list[Increment]:
        """Note which events were opened and which not, and give what is new of it. A withheld session counts too."""
        homeserver_id = self._homeserver_id
        codes = await undecryptable.note_withheld(conn, homeserver_id, reading.withheld, at) if reading.withheld else []
        unread = [
            UnreadRow(
                event_id=EventId(event.event_id),
                room_id=event.room_id,
                session_id=event.session_id,
                sender=event.sender,
                event_at=event.at,
                reason=event.reason,
            )
            for event in reading.unread_events
            if event.room_id in self.rooms
        ]
        reasons = await undecryptable.note_unread(conn, homeserver_id, unread, at) if unread else []
        here = {event["event_id"] for event in sealed_events(body) if event["room_id"] in self.rooms}
        opened = here & reading.opened.events.keys()
        later = await undecryptable.note_opened(conn, homeserver_id, opened, at) if opened else frozenset()
        at_once = (opened & {place.event_id for place in keyring.changes.indices.values()}) - later
        return event_increments(reasons, codes, at_once=len(at_once), later=len(later))

    async def _note_messages(
        self, conn: Connection, body: dict[str, Any], keyring: Keyring, reading: Reading, at: datetime
    ) -> list[Increment]:
        """Note which to-device messages were opened and which not, and give what is new of it."""
        unread = dict(reading.unread_messages)
        reasons: list[UndecryptableReason] = []
        if unread:
            await record_gaps(conn, self._homeserver_id, [self._gap(name, at) for name in unread])
            named = {
                self._keyed.identity(message.text, *self.device): unread[message_id(message.text)]
                for message in messages_for(body, self.device, keyring.identity_key)
                if message_id(message.text) in unread
            }
            reasons = await undecryptable.note_unread_messages(conn, self._homeserver_id, named, at)
        return message_increments(reasons, opened=len(keyring.changes.messages - unread.keys()))

    def _rows(self, sessions: Iterable[tuple[tuple[RoomId, str, UserId], MegolmSession]]) -> list[MegolmRow]:
        return [
            MegolmRow(
                room_id=room_id,
                session_id=session_id,
                owner=owner,
                sender_key=known.sender_key,
                device_id=known.sealed_by.device_id,
                trust=known.sealed_by.trust,
                first_index=known.session.first_known_index,
                pickle=self.pickle(known.session),
            )
            for (room_id, session_id, owner), known in sessions
        ]

    def _gap(self, name: str, at: datetime) -> Gap:
        """A message for the device that did not open may have been a key."""
        return Gap(
            gap_id=f"{GapReason.UNDECRYPTABLE}/{self._homeserver}/{name}",
            homeserver=self._homeserver,
            reason=GapReason.UNDECRYPTABLE,
            started_at=at,
            ended_at=at,
        )


def _dicts(listed: Any) -> Iterable[dict[str, Any]]:
    return (one for one in listed if isinstance(one, dict)) if isinstance(listed, list) else ()
