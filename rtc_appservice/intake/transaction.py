"""
Stage 1: one homeserver transaction: parse, read, store, commit. Returning means committed.

A transaction that holds nothing of interest costs no write. One that is sent again holds the same room events,
which the store recognises, and no to-device messages: those come at most once, so an outage leaves a gap.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from rtc_appservice.core.fields import Malformed, text
from rtc_appservice.core.observed import Observation, Rejected
from rtc_appservice.core.opened import Opened
from rtc_appservice.core.room_facts import room_left
from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import GapReason, RoomId, ServerName, UserId
from rtc_appservice.errors import DataRefused, RtcAppserviceError, StoreUnavailable
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.json_text import parse_json
from rtc_appservice.intake.outages import Life, Outages
from rtc_appservice.intake.storing import record_what_can_be
from rtc_appservice.intake.stream import Stream
from rtc_appservice.repeats import Repeats
from rtc_appservice.store.gaps import cut_gaps, load_gaps, open_gaps, record_gaps
from rtc_appservice.store.pool import Connection, Pool, lend, store_errors
from rtc_appservice.store.rooms import RoomCache, watched_rooms
from rtc_appservice.store.streams import heartbeat, open_stream

if TYPE_CHECKING:  # needs Olm, which is optional
    from rtc_appservice.intake.decrypt import Reading
    from rtc_appservice.intake.sealed import SealedIntake

_log = logging.getLogger("rtc_appservice.intake")

#: How often the service notes that it lives; a gap after a crash begins at most this much too early.
HEARTBEAT_SECONDS = 10.0

#: The homeserver (Synapse) waits 60 s for an answer; a database that takes longer than this has stopped.
STORE_SECONDS = 18.0

#: Gaps that end once the stream is current, whichever instance sees it.
_UNTIL_CURRENT = (GapReason.TO_DEVICE_LOST, GapReason.BACKLOG)

#: Gives the body of a request, or fails to.
Read = Callable[[], Awaitable[bytes]]
#: Stores one transaction, whose body it reads itself; returning means committed.
Take = Callable[[Read], Awaitable[Intake]]
#: Writes something of its own in the commit of what was read; may change it first.
Write = Callable[[Connection, "Reading", Intake], Awaitable[None]]


class BadBody(RtcAppserviceError):
    """The body is not a transaction."""

    def __init__(self, errcode: str, message: str) -> None:
        """Take the Matrix error code and a text that quotes nothing."""
        super().__init__(message)
        self.errcode = errcode


def parse_body(raw: bytes) -> dict[str, Any]:
    """Parse a transaction body; raises BadBody."""
    try:
        body = parse_json(raw)
    except ValueError:
        body = _NOT_JSON
    # Raised out here, lest the parser's error, which holds the body, become the context of ours.
    if body is _NOT_JSON:
        raise BadBody("M_NOT_JSON", "The body is not JSON.")
    if not isinstance(body, dict) or not isinstance(body.get("events"), list):
        raise BadBody("M_BAD_JSON", "The body is not an object with a list `events`.")
    return body


_NOT_JSON = object()


def now_utc() -> datetime:
    """Give the wall clock."""
    return datetime.now(UTC)


class TransactionIntake:
    """Takes the transactions of one homeserver; holds what must be known between two of them."""

    def __init__(
        self,
        pool: Pool,
        homeserver: ServerName,
        reader: TransactionReader,
        *,
        clock: Callable[[], datetime] = now_utc,
        store_seconds: float = STORE_SECONDS,
    ) -> None:
        """Take the pool and the homeserver's reader; `open` must be awaited before the first transaction."""
        self._pool = pool
        self._homeserver = homeserver
        self._reader = reader
        self._clock = clock
        self._store_seconds = store_seconds
        self._homeserver_id = 0
        self._rooms = RoomCache()
        self._watched: set[RoomId] = set()
        self._stream = Stream()
        self._outages = Outages(homeserver)
        self._life = Life()
        self._taken_at: datetime | None = None
        #: The part of the service's own device, if it has one.
        self.sealed: SealedIntake | None = None

    async def open(self) -> None:
        """
        Load where the stream stood, and record that nothing was seen since.

        Every start leaves a gap, however short the stop: a homeserver that could not deliver to-device messages
        for a moment has dropped them. That another instance lived all the while cannot be told from one killed a moment
        ago, so that one takes the gap of the service back at its next heartbeat.
        """
        now = self._clock()
        with store_errors():
            async with self._pool.acquire() as connection:
                state = await open_stream(connection, self._homeserver)
                self._homeserver_id = state.homeserver_id
                self._watched = await watched_rooms(connection, state.homeserver_id)
                self._stream = Stream(state.watermark_at)
                seen = [at for at in (state.last_transaction_at, state.last_heartbeat_at) if at is not None]
                if seen:
                    gaps = await load_gaps(connection, state.homeserver_id, max(seen))
                    self._outages.adopt(gaps)
                    self._outages.down(max(seen), now, gaps)
                    self._outages.begin(GapReason.TO_DEVICE_LOST, max(seen))
                await self._beat(connection, now)

    @property
    def homeserver_id(self) -> int:
        """The homeserver's number in the database, known once opened."""
        return self._homeserver_id

    async def take(self, read: Read) -> Intake:
        """
        Store a transaction and give what it held.

        However it fails, the homeserver sends it again without its to-device messages, and has dropped those that
        were sent until then.

        Raises:
            BadBody: if it is no transaction.
            StoreUnavailable: if it is not committed.
        """
        begun_at = self._clock()
        watermark_at = self._stream.watermark(begun_at)
        self._stream.begin()
        try:
            body = parse_body(await read())
            received_at = self._clock()
            intake = await self._take_body(body, received_at, watermark_at)
        except BaseException as error:
            self._stream.fail()
            self._outages.begin(GapReason.TO_DEVICE_LOST, begun_at)
            if isinstance(error, StoreUnavailable):
                self._outages.begin(GapReason.DATABASE_DOWN, begun_at)
            raise
        self._stream.commit(intake.newest_at, received_at)
        self._taken_at = received_at
        self._watched |= intake.rtc_rooms
        if self._stream.behind_since is not None:
            self._outages.begin(GapReason.BACKLOG, self._stream.behind_since)
        if self._stream.current:
            for reason in _UNTIL_CURRENT:
                self._outages.end(reason, received_at)
        return intake

    async def _take_body(self, body: dict[str, Any], received_at: datetime, watermark_at: datetime | None) -> Intake:
        if self.sealed is not None:
            body = self.sealed.in_order(body)
        if self.sealed is not None and self.sealed.concerns(body):
            try:
                return await self._take_sealed(self.sealed, body, received_at, watermark_at)
            except DataRefused as error:
                # It would be refused each time it is sent again: the device goes without, the rest is stored.
                _log.error("the device's part of a transaction was dropped", extra=describe(error))
                self._outages.begin(GapReason.TO_DEVICE_LOST, received_at)
        intake = self._read(body, received_at, watermark_at)
        if intake.observations or intake.envelopes:
            await self._store(intake, received_at)
            if self.sealed is not None:
                self.sealed.note_calls(intake)
        return intake

    async def take_beside(self, body: dict[str, Any], also: Write, *, is_snapshot: bool = False) -> Intake:
        """
        Store what came for our device by another way than a transaction, and what `also` writes, in one commit.

        It says nothing of how far the stream of transactions has come. Nothing in a snapshot is late: it holds now.

        Raises:
            StoreUnavailable: if it is not committed.
        """
        if self.sealed is None:
            raise RuntimeError("there is no device")
        now = self._clock()
        watermark_at = None if is_snapshot else self._stream.watermark(now)
        intake = await self._take_sealed(self.sealed, body, now, watermark_at, also)
        self._watched |= intake.rtc_rooms
        return intake

    async def _take_sealed(
        self,
        sealed: "SealedIntake",
        body: dict[str, Any],
        received_at: datetime,
        watermark_at: datetime | None,
        also: Write | None = None,
    ) -> Intake:
        identities = await sealed.learn_senders(body)
        async with lend(self._pool, self._store_seconds) as connection:
            await self._write_gaps(connection)
            async with connection.transaction():
                keyring, reading = await sealed.open(connection, body, identities)
                intake = self._read(body, received_at, watermark_at, reading.opened)
                user_id, _ = sealed.own.device
                for room_id, event_id, at in sealed.rooms_left(body, received_at):
                    intake.observations.append(room_left(self._homeserver, room_id, user_id, at, event_id))
                if also is not None:
                    intake.newest_at = None
                    await also(connection, reading, intake)
                await record_what_can_be(connection, self._homeserver_id, intake, self._rooms)
                await sealed.save(connection, body, keyring, reading, received_at)
        sealed.committed(body, reading, intake)
        self._outages.end(GapReason.DATABASE_DOWN, received_at)
        return intake

    async def run_heartbeat(self, stop: asyncio.Event) -> None:
        """Note every few seconds that the service lives, how far it has come and which gaps have ended."""
        repeats = Repeats()
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), HEARTBEAT_SECONDS)
            try:
                await self.beat()
            except StoreUnavailable:
                count = repeats.note(StoreUnavailable)
                if count is not None:
                    _log.warning("the database did not take the heartbeat", extra={"count": count})

    async def beat(self) -> None:
        """Write one heartbeat; raises StoreUnavailable."""
        now = self._clock()
        async with lend(self._pool, self._store_seconds) as connection:
            await self._beat(connection, now)

    async def _beat(self, connection: Connection, now: datetime) -> None:
        self._outages.follow(await open_gaps(connection, self._homeserver_id))
        self._outages.end(GapReason.DATABASE_DOWN, now)
        shown_at = self._stream.shown_current_at
        if shown_at is not None:
            for reason in _UNTIL_CURRENT:
                self._outages.end_before(reason, shown_at)
        await self._write_gaps(connection)
        await cut_gaps(connection, self._homeserver_id, GapReason.SERVICE_DOWN, self._life.since(now))
        await heartbeat(connection, self._homeserver_id, now, self._stream.watermark(now))
        self._life.beat(now)

    def _read(
        self,
        body: dict[str, Any],
        received_at: datetime,
        watermark_at: datetime | None,
        opened: Opened | None = None,
    ) -> Intake:
        """
        Read a transaction, and if that fails, each of its parts.

        The reader takes bad content for data. Were there content it fails on all the same, answering 500 would stop
        the homeserver's queue for ever at that transaction: so what fails alone is recorded as rejected.
        """
        read = partial(
            self._reader.read,
            received_at=received_at,
            watched=self._watched,
            watermark_at=watermark_at,
            opened=opened,
        )
        try:
            return read(body)
        except Exception as error:  # noqa: BLE001 - whatever it is, only the part at fault may be lost
            _log.error("a transaction could not be read whole", extra=describe(error))
        whole = Intake()
        for name, part in _parts(body):
            try:
                found = read({"events": [], name: [part]})
            except Exception:  # noqa: BLE001 - see above
                found = Intake(observations=_reject(self._homeserver, part, received_at))
            whole.observations += found.observations
            whole.envelopes += found.envelopes
            whole.rtc_rooms |= found.rtc_rooms
            whole.served_users |= found.served_users
            whole.newest_at = max(filter(None, (whole.newest_at, found.newest_at)), default=None)
            whole.event_count += found.event_count
            whole.to_device_count += found.to_device_count
        return whole

    async def _store(self, intake: Intake, received_at: datetime) -> None:
        async with lend(self._pool, self._store_seconds) as connection:
            # Gaps first: once the stream's row says that the service lives, a crash would hide them.
            await self._write_gaps(connection)
            recorded = await record_what_can_be(connection, self._homeserver_id, intake, self._rooms)
            self._outages.end(GapReason.DATABASE_DOWN, received_at)
            if recorded.duplicates and not recorded.new:
                # Sent again though committed: our answer was lost or late, and the homeserver took us for down.
                self._outages.begin(GapReason.TO_DEVICE_LOST, self._taken_at or received_at)
                await self._write_gaps(connection)

    async def _write_gaps(self, connection: Connection) -> None:
        gaps = self._outages.unwritten()
        if gaps:
            await record_gaps(connection, self._homeserver_id, gaps)
            self._outages.written(gaps)


def _parts(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every room event and to-device message of a transaction, with the name of the list it stands in."""
    for name in ("events", "to_device", "de.sorunome.msc2409.to_device"):
        listed = body.get(name)
        if isinstance(listed, list):
            yield from ((name, part) for part in listed)


def _reject(homeserver: ServerName, event: Any, received_at: datetime) -> list[Observation]:
    """Give the rejected observation for a room event the reader failed on, none where it has no identity."""
    try:
        named = {name: text(event, name, "event") for name in ("type", "sender", "room_id", "event_id")}
    except (Malformed, AttributeError):
        return []
    return [
        Observation(
            homeserver=homeserver,
            room_id=RoomId(named["room_id"]),
            identity=named["event_id"],
            event_at=received_at,
            received_at=received_at,
            body=Rejected(sender=UserId(named["sender"]), event_type=named["type"], reason="malformed"),
        )
    ]
