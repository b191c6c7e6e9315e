"""
Stage 1: the life of the service's own device: it is made, follows `/sync`, enters rooms it is asked into, reads again.

Transactions lose to-device messages, `/sync` does not: what comes by both is taken once.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

import aiohttp
from mautrix.errors import MatrixRequestError
from msgspec import Struct
from msgspec.structs import replace

from rtc_appservice.core.observed import Gap, ToDeviceKey
from rtc_appservice.core.stints import DeviceStint, build_stints, in_order
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import Device, DeviceId, EventId, GapReason, RoomId, ServerName, UserId
from rtc_appservice.errors import DataRefused, RtcAppserviceError
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.device_api import DeviceApi, RequestFailed, is_gone, text_of
from rtc_appservice.intake.device_setup import DeviceSetup
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.identities import Identities
from rtc_appservice.intake.json_text import is_text
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.intake.room_keeper import RoomKeeper
from rtc_appservice.intake.sealed import Invitations, SealedIntake
from rtc_appservice.intake.transaction import TransactionIntake, now_utc
from rtc_appservice.intake.witness import Witness
from rtc_appservice.store import audited_rooms, crypto
from rtc_appservice.store.gaps import record_gaps
from rtc_appservice.store.observations import load_call_members
from rtc_appservice.store.pool import WORK_SECONDS, Connection, Pool, lend

_log = logging.getLogger("rtc_appservice.intake")

#: Commands write to the database; this is how soon they are followed.
LOOK_SECONDS = 5.0
RETRY_SECONDS = 5.0
#: A room that could not be entered is tried again after this.
REFUSED_SECONDS = 60.0
#: Synapse's `/sync` brings no more to-device messages at once; then others may wait.
SYNC_MESSAGES = 100
#: Behind the last answer by more than this, what `/sync` brings was sent before it could be read.
BEHIND = timedelta(seconds=10)
_AT_ONCE = 100
#: Memberships are believed for four hours, and refreshed before that; some clients take their time.
MEMBERS_SINCE = timedelta(days=1)


class AuditorTerms(Struct, frozen=True, kw_only=True):
    """How the device behaves."""

    address: str
    as_token: str
    user_id: UserId
    device_id: DeviceId  #: of a new device; one that exists keeps its own
    secret: bytes
    invited_by: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()  #: ids or aliases to join at start
    notice: str | None = None
    witness_notice: str | None = None

    def __repr__(self) -> str:
        """Leave the secrets out."""
        return f"AuditorTerms(user_id={self.user_id!r})"


def auditor_terms(
    *,
    address: str,
    as_token: str,
    sender_localpart: str,
    homeserver: ServerName,
    secret: bytes,
    invited_by: tuple[str, ...] = (),
    rooms: tuple[str, ...] = (),
    notice: str = "",
    witness_notice: str = "",
) -> AuditorTerms:
    """
    Give the terms of the device of an installation.

    Its user is another than the registration's sender, to whom Synapse (1.163) gives no `/sync`.
    """
    return AuditorTerms(
        address=address,
        as_token=as_token,
        user_id=UserId(f"@{sender_localpart}-device:{homeserver}"),
        device_id=DeviceId("AUDITOR" + secrets.token_hex(4).upper()),
        secret=secret,
        invited_by=invited_by,
        rooms=rooms,
        notice=notice or None,
        witness_notice=witness_notice or None,
    )


#: What to do when the homeserver does not take the device.
_SETUP_HINT = (
    "`rtc-appservice doctor` tells what the homeserver refuses. A deployment secret that was replaced once cannot be"
    " used again: take a fresh one, run `rtc-appservice new-device`, start the service"
)


class Auditor:
    """The device, alive."""

    def __init__(
        self,
        pool: Pool,
        homeserver: ServerName,
        intake: TransactionIntake,
        terms: AuditorTerms,
        *,
        clock: Callable[[], datetime] = now_utc,
    ) -> None:
        """Take the intake whose transactions the device reads; `open` must be awaited before the first of them."""
        self._pool = pool
        self._homeserver = homeserver
        self._homeserver_id = intake.homeserver_id
        self._intake = intake
        self._terms = terms
        self._clock = clock
        self._synced_at: datetime | None = None

    async def open(self, session: aiohttp.ClientSession) -> None:
        """Load the device, or make its keys, and have it read transactions from now on."""
        terms = self._terms
        new = OwnDevice(self._homeserver, self._homeserver_id, (terms.user_id, terms.device_id), terms.secret)
        async with self._database() as conn, conn.transaction():
            row = await crypto.add_device(conn, self._homeserver_id, terms.user_id, terms.device_id, new.new_account())
            rooms = await audited_rooms.audited_rooms(conn, self._homeserver_id)
        device: Device = (row.user_id, row.device_id)
        self.own = OwnDevice(self._homeserver, self._homeserver_id, device, terms.secret)
        self.own.identity_key = str(self.own.account(row.account).identity_keys["curve25519"])
        self.own.rooms = {room.room_id for room in rooms if room.joined_at is not None}
        self._synced_at = row.synced_at
        self._api = DeviceApi(terms.address, terms.as_token, session, device)
        self._setup = DeviceSetup(self._pool, self._homeserver_id, self.own, self._api, terms.secret)
        identities = Identities(self._api)
        self._sealed = SealedIntake(
            self._homeserver_id,
            self.own,
            Invitations(terms.invited_by),
            lambda users: identities.learn(users, self._clock()),
        )
        self._sealed.is_behind = True
        self._sealed.rooms_changed.set()
        self._sealed.sessions_came.set()
        self._sealed.calls_changed |= self.own.rooms
        self._sealed.call_changed.set()
        self._intake.sealed = self._sealed
        self._witness = Witness(
            self._api,
            device,
            self._sealed,
            is_wanted=self._is_witness,
            members=self._call_members,
            notice=terms.witness_notice,
            clock=self._clock,
        )
        self._rooms = RoomKeeper(
            self._pool,
            self._homeserver,
            self._intake,
            self._sealed,
            self._api,
            self._witness,
            notice=terms.notice,
            clock=self._clock,
        )

    async def run(self, stop: asyncio.Event) -> None:
        """Live until `stop`; what the homeserver or the database refuse is tried again."""
        if not await self._persist(stop, "the device could not be set up", self._make, hint=_SETUP_HINT):
            return
        _log.info("the device of the service is set up")
        parts = (
            self._until(stop, "the device could not sync", self._sync_or_note),
            self._until(stop, "rooms could not be tended", self._rooms.tend),
            self._until(stop, "events could not be read again", self._read_again),
            self._witness.run(stop),
        )
        living = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.gather(*living)
        finally:
            # One that failed ends the others.
            stop.set()
            await asyncio.gather(*living, return_exceptions=True)

    async def _make(self) -> None:
        await self._setup.set_up(self._clock())
        await self._rooms.enter_configured(self._terms.rooms)

    # --- /sync ---------------------------------------------------------------------------------

    async def _sync(self) -> None:
        async with self._database() as conn:
            row = await crypto.require_device(conn, self._homeserver_id, self.own.device)
        answer = await self._api.sync(row.sync_token)
        received_at = self._clock()
        since = self._synced_at
        to_device = answer.get("to_device")
        found = to_device.get("events") if isinstance(to_device, dict) else None
        events = found if isinstance(found, list) else []
        user_id, device_id = self.own.device
        messages = [
            {**event, "to_user_id": user_id, "to_device_id": device_id}
            for event in events
            if isinstance(event, dict) and is_text(event)
        ]
        next_batch = text_of(answer, "next_batch")

        async def write(conn: Connection, _reading: Reading, intake: Intake) -> None:
            await crypto.save_sync_token(conn, self._homeserver_id, next_batch, received_at)
            if since is not None and received_at - since > BEHIND:
                date_back(intake, since)

        try:
            if messages:
                await self._intake.take_beside({"events": [], "to_device": messages}, write)
        except DataRefused as error:
            # It would be refused each time it is asked for again: the device goes without.
            _log.error("what a sync brought was dropped", extra=describe(error))
            await self._note_not_synced()
            messages = []
        if not messages:
            async with self._database() as conn:
                await crypto.save_sync_token(conn, self._homeserver_id, next_batch, received_at)
        self._synced_at = received_at
        self._sealed.is_behind = len(events) >= SYNC_MESSAGES
        counts = answer.get("device_one_time_keys_count")
        count = counts.get("signed_curve25519", 0) if isinstance(counts, dict) else None
        unused = answer.get("device_unused_fallback_key_types")
        is_used = isinstance(unused, list) and "signed_curve25519" not in unused
        if isinstance(count, int):
            await self._setup.refill(count, is_fallback_used=is_used, now=received_at)

    async def _sync_or_note(self) -> None:
        try:
            await self._sync()
        except BaseException as error:
            self._sealed.is_behind = True
            if isinstance(error, RequestFailed):
                await self._note_not_synced()
            raise

    async def _note_not_synced(self) -> None:
        """Record that what is sent to the device is not read for now."""
        if self._synced_at is None:
            return
        gap = Gap(
            gap_id=f"{GapReason.UNDECRYPTABLE}/{self._homeserver}/sync/{self._synced_at.isoformat()}",
            homeserver=self._homeserver,
            reason=GapReason.UNDECRYPTABLE,
            started_at=self._synced_at,
            ended_at=self._clock(),
        )
        async with self._database() as conn:
            await record_gaps(conn, self._homeserver_id, [gap])

    async def _is_witness(self, room_id: RoomId) -> bool:
        async with self._database() as conn:
            return await audited_rooms.is_witness(conn, self._homeserver_id, room_id)

    async def _call_members(self, room_id: RoomId) -> list[DeviceStint]:
        """Give who has been in the calls of a room of late, as recorded."""
        now = self._clock()
        async with self._database() as conn:
            where = self._homeserver_id, self._homeserver, room_id
            found = await load_call_members(conn, *where, now - MEMBERS_SINCE)
        return build_stints(in_order(found), now)

    # --- events that could not be read ---------------------------------------------------------

    async def _read_again(self) -> None:
        await self._sealed.sessions_came.wait()
        self._sealed.sessions_came.clear()
        fault: BaseException | None = None
        try:
            async with self._database() as conn:
                waiting = await crypto.readable_now(conn, self._homeserver_id, _AT_ONCE)
            for unread in waiting:
                try:
                    await self._read_one_again(unread.room_id, unread.event_id)
                except MatrixRequestError as error:  # of this event: those behind it are not kept waiting
                    fault = error
            if fault is not None:
                raise fault
        except BaseException:
            # What failed is tried again, not only when another session comes.
            self._sealed.sessions_came.set()
            raise
        if len(waiting) == _AT_ONCE:
            self._sealed.sessions_came.set()

    async def _read_one_again(self, room_id: RoomId, event_id: EventId) -> None:
        async def write(conn: Connection, _reading: Reading, _intake: Intake) -> None:
            await crypto.drop_unread(conn, self._homeserver_id, event_id)
            await crypto.drop_sealed_observation(conn, self._homeserver_id, event_id)

        try:
            event = await self._api.event(room_id, event_id)
        except RequestFailed as error:
            if not is_gone(error):
                raise
            async with self._database() as conn:
                await crypto.drop_unread(conn, self._homeserver_id, event_id)
            return
        await self._intake.take_beside({"events": [{**event, "room_id": room_id}]}, write)

    # --- going on ------------------------------------------------------------------------------

    async def _until(self, stop: asyncio.Event, fault: str, step: Callable[[], Awaitable[None]]) -> None:
        while not stop.is_set():
            await self._persist(stop, fault, step)

    async def _persist(
        self, stop: asyncio.Event, fault: str, step: Callable[[], Awaitable[None]], hint: str | None = None
    ) -> bool:
        """Do a step until it succeeds; tells whether it did before `stop`. Raises DeviceReplaced."""
        while not stop.is_set():
            doing, stopping = asyncio.ensure_future(step()), asyncio.ensure_future(stop.wait())
            try:
                await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not doing.done():
                    return False
                doing.result()
                return True
            except crypto.DeviceReplaced:
                raise
            except (*RequestFailed, RtcAppserviceError) as error:
                refused = hint is not None and isinstance(error, MatrixRequestError)
                _log.warning(fault, extra=describe(error) | ({"hint": hint} if refused else {}))
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), RETRY_SECONDS)
            finally:
                stopping.cancel()
                if not doing.done():
                    doing.cancel()
                    await asyncio.gather(doing, return_exceptions=True)
        return False

    @asynccontextmanager
    async def _database(self) -> AsyncIterator[Connection]:
        async with lend(self._pool, WORK_SECONDS) as conn:
            yield conn


def date_back(intake: Intake, since: datetime) -> None:
    """Give keys that waited for the device the time they were sent at, within what can be: they are not late."""
    for position, observation in enumerate(intake.observations):
        body = observation.body
        if isinstance(body, ToDeviceKey) and body.claimed_sent_at is not None:
            sent_at = min(max(body.claimed_sent_at, since), observation.received_at)
            intake.observations[position] = replace(observation, event_at=sent_at)
