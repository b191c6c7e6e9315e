"""
Stage 2: a transaction that concerns the service's own device: opened, and saved with what came of it.

What the device has to do afterwards (join, read again, take part) is only noted here, in the commit or as a signal:
`transaction` holds the commit, `auditor` acts.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any

from rtc_appservice.core.fields import is_id
from rtc_appservice.core.observed import Membership
from rtc_appservice.core.wire import LATE_AFTER, Intake
from rtc_appservice.core.words import RoomId, UserId
from rtc_appservice.intake.decrypt import Reading, messages_for, open_transaction, origin_time, sealed_events
from rtc_appservice.intake.device_keys import Identity
from rtc_appservice.intake.keyring import Keyring
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.repeats import Repeats
from rtc_appservice.store import audited_rooms
from rtc_appservice.store.pool import Connection

_log = logging.getLogger("rtc_appservice.intake")

#: Room state by which a room's moderators ask the device into its calls: `{"enabled": true}`.
WITNESS_TYPE = "rtc_appservice.witness"

#: Gives what the homeserver says of users; never fails.
Learn = Callable[[Collection[UserId]], Awaitable[Mapping[UserId, Identity]]]


class Invitations:
    """Who may ask the device into a room: users and whole servers."""

    def __init__(self, allowed: Collection[str]) -> None:
        """Take user ids and server names."""
        self._allowed = frozenset(allowed)

    def accept(self, sender: str) -> bool:
        """Tell whether an invitation of this user is followed."""
        return sender in self._allowed or sender.partition(":")[2] in self._allowed


class SealedIntake:
    """The device's part in taking a transaction."""

    def __init__(self, homeserver_id: int, own: OwnDevice, invitations: Invitations, learn: Learn) -> None:
        """Take the device, who may invite it, and what tells of other users."""
        self._homeserver_id = homeserver_id
        self.own = own
        self._invitations = invitations
        self._learn = learn
        #: Set when rooms have to be joined, left or told.
        self.rooms_changed = asyncio.Event()
        #: Set when Megolm sessions came that unread events may wait for.
        self.sessions_came = asyncio.Event()
        #: Rooms in which a call changed.
        self.calls_changed: set[RoomId] = set()
        self.call_changed = asyncio.Event()
        #: Set while messages of before may wait at the homeserver, for `/sync` to bring.
        self.is_behind = False
        self._repeats = Repeats()

    def in_order(self, body: dict[str, Any]) -> dict[str, Any]:
        """
        Give a transaction without the device's messages while older ones are to come by `/sync`, which brings all.

        An Olm session keeps the keys of forty messages that were passed over: older ones would never open.
        """
        return self.own.without_messages(body) if self.is_behind else body

    def concerns(self, body: dict[str, Any]) -> bool:
        """Tell whether a transaction holds something for the device."""
        return self.own.concerns(body) or any(self._changes(body))

    async def learn_senders(self, body: dict[str, Any]) -> Mapping[UserId, Identity]:
        """Give what the homeserver says of those who sent to the device."""
        return await self._learn(
            {message.sender for message in messages_for(body, self.own.device, self.own.identity_key)}
        )

    async def open(
        self, conn: Connection, body: dict[str, Any], identities: Mapping[UserId, Identity]
    ) -> tuple[Keyring, Reading]:
        """Open what there is for the device; its keys are held until the commit."""
        body = self._of_its_rooms(body)
        keyring = await self.own.load(conn, body)
        # A hundred ratchet steps are some 40 ms: other transactions and probes are not kept waiting for that.
        return keyring, await asyncio.to_thread(open_transaction, body, keyring, identities)

    async def save(
        self, conn: Connection, body: dict[str, Any], keyring: Keyring, reading: Reading, at: datetime
    ) -> None:
        """Write the device's keys, what it could read and not, and the rooms it was asked into or put out of."""
        await self.own.save(conn, body, keyring, reading, at)
        for room_id, change in self._changes(body):
            if change == "invite":
                await audited_rooms.want_room(conn, self._homeserver_id, room_id, wanted=True)
            elif change == "join":
                await audited_rooms.mark_joined(conn, self._homeserver_id, room_id, at)
            elif change == "leave":
                await audited_rooms.drop_room(conn, self._homeserver_id, room_id)
            elif change != "uninvited":
                await audited_rooms.want_witness(conn, self._homeserver_id, room_id, witness=change == "witness")

    def committed(self, body: dict[str, Any], reading: Reading, intake: Intake) -> None:
        """Let the rest of the service know what is in the database now."""
        for room_id, change in self._changes(body):
            if change == "join":
                self.own.rooms.add(room_id)
            elif change == "leave":
                self.own.rooms.discard(room_id)
            elif change == "uninvited":
                self._say_uninvited(room_id)
            self.rooms_changed.set()
            self.note_call(room_id)
        if reading.sessions:
            self.sessions_came.set()
        self.note_calls(intake)

    def note_calls(self, intake: Intake) -> None:
        """Note in which of the device's rooms a membership came."""
        for observation in intake.observations:
            if isinstance(observation.body, Membership) and observation.room_id in self.own.rooms:
                self.note_call(observation.room_id)

    def note_call(self, room_id: RoomId) -> None:
        """Note that a room's call is to be looked at."""
        self.calls_changed.add(room_id)
        self.call_changed.set()

    def rooms_left(self, body: dict[str, Any], received_at: datetime) -> Iterator[tuple[RoomId, str, datetime]]:
        """
        Yield (room, event id, when) for each room that the device left or was put out of.

        It counts from the event's own time, for what came after it was no longer seen; whoever put it out chooses that
        time, so it is believed a minute back at most.
        """
        events = body.get("events")
        for event in events if isinstance(events, list) else ():
            if isinstance(event, dict) and is_id(event.get("event_id")):
                for room_id, change in self._changes({"events": [event]}):
                    if change == "leave":
                        at = origin_time(event) or received_at
                        yield room_id, event["event_id"], max(min(at, received_at), received_at - LATE_AFTER)

    def _of_its_rooms(self, body: dict[str, Any]) -> dict[str, Any]:
        """Leave out what is sealed in rooms it is not in: sessions are handed to who is invited, or was there, too."""
        rooms = self.own.rooms | {room_id for room_id, change in self._changes(body) if change == "join"}
        return {**body, "events": [event for event in sealed_events(body) if event["room_id"] in rooms]}

    def _changes(self, body: dict[str, Any]) -> Iterator[tuple[RoomId, str]]:
        """
        Yield (room, what events say to the device itself), in order.

        That is `invite`, `uninvited` (by somebody it does not follow), `join`, `leave`, `witness` or `no_witness`.
        """
        events = body.get("events")
        for event in events if isinstance(events, list) else ():
            if not isinstance(event, dict):
                continue
            kind, content, room_id = event.get("type"), event.get("content"), event.get("room_id")
            if not isinstance(content, dict) or not is_id(room_id):
                continue
            if kind == "m.room.member" and event.get("state_key") == self.own.device[0]:
                yield from self._own_membership(RoomId(room_id), content.get("membership"), event.get("sender"))
            elif kind == WITNESS_TYPE and event.get("state_key") == "":
                yield RoomId(room_id), "witness" if content.get("enabled") is True else "no_witness"

    def _own_membership(self, room_id: RoomId, membership: Any, sender: Any) -> Iterator[tuple[RoomId, str]]:
        if membership == "invite" and isinstance(sender, str):
            yield room_id, "invite" if self._invitations.accept(sender) else "uninvited"
        elif membership == "join":
            yield room_id, "join"
        elif membership in ("leave", "ban"):
            yield room_id, "leave"

    def _say_uninvited(self, room_id: RoomId) -> None:
        """Log an invitation that is not followed: who invited the device waits for it."""
        count = self._repeats.note("uninvited")
        if count is not None:
            hint = "who invited it is not in auditor.invited_by; `rtc-appservice room add` has it enter all the same"
            _log.warning("an invitation was not followed", extra={"count": count, "hint": hint})
        _log.debug("an invitation was not followed", extra={"room_id": room_id})
