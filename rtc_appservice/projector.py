"""
Stages 4 and 5: rooms with news in, call sessions, findings, totals and events to send out; all in one commit a room.

Several may run on one database: each holds the rooms it projects, and passes over those another holds.
"""

import asyncio
import dataclasses
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from msgspec.structs import replace

from rtc_appservice.core.attribution import KEY_BEFORE_STINT
from rtc_appservice.core.envelope import place
from rtc_appservice.core.ledger import history_ledger
from rtc_appservice.core.live_rooms import Basis, LiveRoom, LiveRooms
from rtc_appservice.core.model import CallSession, Finding, Projected, RoomHistory, Settings, UndecryptableKey
from rtc_appservice.core.observed import Observation, Redaction
from rtc_appservice.core.rollup import increments, room_increments
from rtc_appservice.core.room_findings import day_of, settles_at
from rtc_appservice.core.session import RoomProjection
from rtc_appservice.core.stints import in_order
from rtc_appservice.core.words import CallId, DeviceId, EventId, Evidence, RoomId, ServerName, UserId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.repeats import Repeats
from rtc_appservice.store import envelopes, findings, outbox, partitions, projection, sessions, totals
from rtc_appservice.store.crypto import own_devices, prune
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.observations import load_room, load_since
from rtc_appservice.store.outbox import OutboxRow
from rtc_appservice.store.pool import WORK_SECONDS, Connection, Pool, lend, store_errors
from rtc_appservice.store.undecryptable import load_undecryptable

log = logging.getLogger(__name__)

#: A key of a device that left is told with the call it left, up to 24 h; one more for the call around it.
CONTEXT = timedelta(hours=25)
#: Detection asks whether a device distributed by to-device in the last 30 days.
TO_DEVICE_HISTORY = timedelta(days=30)
#: Rooms taken in one go, before held envelopes are looked at.
BATCH = 100
#: Between two rounds: what a busy room brings meanwhile is projected once, and intake has the processor.
POLL_SECONDS = 0.25
MAINTENANCE_SECONDS = 3600.0
#: How long a room of `replay` has a connection for: as long as it needs, for the driver gives up on single statements.
REPLAY_SECONDS = 86400.0
#: Before anything there is.
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)

#: Called with a call, the findings that settled with this projection, and whether the call is new; gives what to send.
#: `report.settled` is true in the one projection with which the call settles, and never again.
Events = Callable[[CallSession, Sequence[Finding], bool], Sequence[OutboxRow]]


def no_events(_session: CallSession, _newly_settled: Sequence[Finding], _first_time: bool) -> Sequence[OutboxRow]:
    """Send nothing: no exporter is configured."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Projector:
    """What projecting the rooms of one homeserver takes."""

    homeserver: ServerName
    homeserver_id: int
    envelopes: bool  #: the registration's scope shows Olm envelopes
    settings: Settings = field(default_factory=Settings)
    events: Events = no_events
    seconds: float = WORK_SECONDS  #: how long one room, or the upkeep, has a connection for at most
    rooms: LiveRooms = field(default_factory=LiveRooms, compare=False)
    #: Rooms whose last projection did not come to an end.
    cut_short: set[int] = field(default_factory=set, compare=False)


async def run_projector(
    pool: Pool, projector: Projector, stop: asyncio.Event, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> None:
    """Project whatever has news or falls due, and keep the partitions, until `stop` is set; outlives the database."""
    maintained_at: datetime | None = None
    repeats = Repeats()
    while not stop.is_set():
        worked = 0
        try:
            now = clock()
            if maintained_at is None or (now - maintained_at).total_seconds() >= MAINTENANCE_SECONDS:
                async with lend(pool, projector.seconds) as conn:
                    await partitions.maintain(conn, now)
                    await prune(conn, projector.homeserver_id, now)
                maintained_at = now
            worked = await project_once(pool, projector, now)
        except StoreUnavailable as error:
            count = repeats.note(StoreUnavailable)
            if count is not None:
                log.warning("projection waits for the database: %s", error, extra={"count": count})
        if worked < BATCH:
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), POLL_SECONDS)


async def project_once(pool: Pool, projector: Projector, now: datetime) -> int:
    """Project rooms with news or due, then place held envelopes; give how many of both, 0 if there is nothing to do."""
    seconds = projector.seconds
    async with lend(pool, seconds) as conn:
        watermark_at = await projection.watermark(conn, projector.homeserver_id)
        if watermark_at is None:
            return 0
        room_keys = await projection.candidates(conn, projector.homeserver_id, watermark_at, BATCH)
    worked = 0
    # One that took too long would be the first again and again.
    for room_key in sorted(room_keys, key=projector.cut_short.__contains__):
        projector.cut_short.add(room_key)
        async with lend(pool, seconds) as conn:
            worked += await _project_if_free(conn, projector, room_key, watermark_at, now)
        projector.cut_short.discard(room_key)
    async with lend(pool, seconds) as conn:
        if projector.envelopes:
            async with conn.transaction():
                worked += await _place_envelopes(conn, projector)
        await envelopes.drop_unplaced(conn, projector.homeserver_id, watermark_at)
    return worked


async def _project_if_free(
    conn: Connection, projector: Projector, room_key: int, watermark_at: datetime, now: datetime
) -> bool:
    """Project a room unless another does; one that cannot be projected keeps its news and does not stop the others."""
    try:
        with store_errors():
            async with conn.transaction():
                claim = await projection.claim(conn, room_key, watermark_at)
                if claim is None:
                    return False
                room = await _project(conn, projector, claim, watermark_at, now)
        if room is not None:  # only now that all of it is committed
            projector.rooms.keep(room_key, room)
        return True
    except Exception as error:
        if conn.is_closed():
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename}:{frame.lineno}"
        log.warning("a room could not be projected", extra={"error": type(error).__name__, "at": where})
        log.debug("a room could not be projected", extra={"room_key": room_key})
        return False


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """How many rooms were projected anew, and how many could not be."""

    projected: int
    failed: int


async def replay(
    pool: Pool, projector: Projector, now: datetime, tell: Callable[[int, int], None] = lambda done, rooms: None
) -> Replayed:
    """
    Project every room again from its first observation on. Nothing changes but what was wrong.

    Args:
        tell: Is given, after each `BATCH`, how many rooms are done, and of how many.
    """
    with store_errors():
        async with pool.acquire() as conn:
            projector.rooms.clear()
            unhurried = dataclasses.replace(projector, seconds=REPLAY_SECONDS)
            marks = await projection.mark_all(conn, projector.homeserver_id)
            before, left = len(marks) + 1, len(marks)
            while 0 < left < before:  # a round that brings none further would not the next time either
                await project_once(pool, unhurried, now)
                before, left = left, await projection.still_marked(conn, marks)
                tell(len(marks) - left, len(marks))
    return Replayed(projected=len(marks) - left, failed=left)


async def _project(
    conn: Connection, projector: Projector, claim: projection.Claim, watermark_at: datetime, now: datetime
) -> LiveRoom | None:
    """Project one held room, as far back as news and open calls reach, write what came of it; give it if it goes on."""
    kept = projector.rooms.take(claim.room_key)
    # What is older may have lost observations to retention: it stays as it was projected.
    rebuildable_since = watermark_at - partitions.OBSERVATION_RETENTION + CONTEXT
    first_day = day_of(rebuildable_since + timedelta(days=1))
    unsettled = await projection.oldest_unsettled(conn, claim.room_key, rebuildable_since)
    open_since = await findings.oldest_open_of_room(conn, claim.room_key, first_day)
    reasons = [at for at in (claim.oldest_news_at, unsettled, open_since) if at is not None]
    if not reasons:
        await projection.set_due(conn, claim.room_key, None)
        return None
    since = await projection.first_overlapping(conn, claim.room_key, max(min(reasons) - CONTEXT, rebuildable_since))
    # What is counted by day is told of whole days; a key may come a little before its call.
    days_since = day_of(since - KEY_BEFORE_STINT)
    from_at = await projection.first_overlapping(conn, claim.room_key, days_since - CONTEXT)
    basis = await _basis(conn, projector, claim, from_at, watermark_at)
    if kept is not None and (
        from_at < rebuildable_since - CONTEXT  # retention takes what was kept
        or not kept.goes_on(basis, claim.version, claim.oldest_news_at)
    ):
        kept = None
    room, news = await _take_news(conn, projector, claim, basis, kept)
    projected, seen = await _project_with_history(conn, projector, room, since)
    days_since = max(days_since, first_day)
    outside = tuple(found for found in projected.findings if claim.watched and found.at >= days_since)
    projected = replace(projected, findings=outside)
    has_device = bool(basis.history.witnesses)
    await _write(conn, projector, claim.room_key, since, days_since, projected, now, has_device=has_device)
    await sessions.write_to_device_seen(conn, projector.homeserver_id, seen)
    to_enter = (*news, *room.redactions.values())
    await totals.write_ledger(
        conn, projector.homeserver_id, claim.room_key, history_ledger(to_enter), _redactions(in_order(to_enter))
    )
    goes_on = any(not call.report.settled for call in projected.calls)
    due = [settles_at(found.at, projector.settings) for found in outside if not found.settled]
    if goes_on:
        due.append(projection.look_again_at(watermark_at, room.projection.last_event_at or watermark_at))
    room.version = await projection.set_due(conn, claim.room_key, min(due, default=None))
    return room if goes_on else None


async def _basis(
    conn: Connection, projector: Projector, claim: projection.Claim, from_at: datetime, watermark_at: datetime
) -> Basis:
    """Give what a held room is projected with, from a time on."""
    history = RoomHistory(
        homeserver=projector.homeserver,
        room_id=claim.room_id,
        observations=(),
        watermark_at=watermark_at,
        envelopes=projector.envelopes,
        gaps=tuple(await load_gaps(conn, projector.homeserver_id, from_at, claim.room_id)),
        watched_since=claim.watched_since,
        witnesses=await own_devices(conn, projector.homeserver_id),
        loss_free=True,
    )
    return Basis(from_at=from_at, settings=projector.settings, history=history)


async def whole_room(conn: Connection, projector: Projector, room_key: int) -> tuple[LiveRoom, Projected]:
    """Give a room that the caller holds, with every observation kept of it, and as projected; writes nothing."""
    claim = await projection.claim_held(conn, room_key)
    watermark_at = await projection.watermark(conn, projector.homeserver_id) or LONG_AGO
    basis = await _basis(conn, projector, claim, LONG_AGO, watermark_at)
    room = LiveRoom(basis, RoomProjection(basis.settings))
    room.take(await load_room(conn, projector.homeserver, claim.room_id, room_key, LONG_AGO))
    projected, _ = await _project_with_history(conn, projector, room, LONG_AGO)
    return room, projected


async def _take_news(
    conn: Connection, projector: Projector, claim: projection.Claim, basis: Basis, kept: LiveRoom | None
) -> tuple[LiveRoom, list[Observation]]:
    """
    Give the room with all its observations taken, and those that may be new to it.

    Whoever stores or removes observations marks the room in the same transaction with the time of the first. So what
    is new since a projection that took all marks there were is not older than the marks there are now.
    """
    where = projector.homeserver, claim.room_id, claim.room_key
    if kept is not None:
        news_at = claim.oldest_news_at
        news = [] if news_at is None else await load_since(conn, *where, news_at)
        if news_at is None or kept.holds(news, news_at):
            kept.basis = basis
            kept.take(news)
            return kept, news
    room = LiveRoom(basis, RoomProjection(basis.settings))
    observations = await load_room(conn, *where, basis.from_at)
    await asyncio.to_thread(room.take, observations)
    return room, observations


async def _project_with_history(
    conn: Connection, projector: Projector, room: LiveRoom, since: datetime
) -> tuple[Projected, sessions.Seen]:
    """
    Give the room with the calls that began at `since` or later, and what was seen of to-device in them.

    Which devices were seen to distribute by to-device before is asked as of each call's own start, so that a replay,
    which knows of later calls, decides the same.
    """
    projected = await _look(room, since)
    calls = projected.calls
    seen = {
        (user_id, device_id, call.report.call_id): at
        for call in calls
        for user_id, device_id, at in call.to_device_seen
    }
    devices = {(fallback.user_id, fallback.device_id) for call in calls for fallback in call.report.fallbacks}
    before: dict[tuple[UserId, DeviceId, CallId], datetime] = {}
    if devices:
        first = min(call.report.started_at for call in calls)
        before = await sessions.load_to_device_seen(conn, projector.homeserver_id, devices, first - TO_DEVICE_HISTORY)
        before.update(seen)
    as_of = {call.report.call_id: found for call in calls if (found := _as_of(before, call))}
    if as_of != room.to_device_history_of:
        room.to_device_history_of = as_of
        room.projection.begin_anew()
        projected = await _look(room, since)
    return projected, seen


async def _look(room: LiveRoom, since: datetime) -> Projected:
    """Project apart from the loop: a call of hundreds takes seconds, and intake answers meanwhile."""
    projected = await asyncio.to_thread(room.look)
    return replace(projected, calls=tuple(call for call in projected.calls if call.report.started_at >= since))


def _as_of(seen: sessions.Seen, call: CallSession) -> Mapping[tuple[UserId, DeviceId], datetime]:
    """Give when each device that fell back in a call was last seen, before it, to distribute by to-device."""
    report = call.report
    devices = {(fallback.user_id, fallback.device_id) for fallback in report.fallbacks}
    found: dict[tuple[UserId, DeviceId], datetime] = {}
    for (user_id, device_id, call_id), at in seen.items():
        device = (user_id, device_id)
        if device in devices and call_id != report.call_id and at < report.started_at:
            found[device] = max(at, found.get(device, at))
    return found


async def _write(
    conn: Connection,
    projector: Projector,
    room_key: int,
    since: datetime,
    days_since: datetime,
    projected: Projected,
    now: datetime,
    *,
    has_device: bool,
) -> None:
    """Write calls, stints and findings, and, for what is new or settled with this, totals and events to send."""
    homeserver_id, calls = projector.homeserver_id, projected.calls
    known = await sessions.known_calls(conn, room_key, since)
    gone = known.keys() - {call.report.call_id for call in calls}
    await sessions.remove_calls(conn, homeserver_id, room_key, since, gone)
    await sessions.write_calls(conn, homeserver_id, room_key, calls)
    await sessions.write_stints(conn, homeserver_id, room_key, calls, gone)
    found: dict[CallId | None, Sequence[Finding]] = {call.report.call_id: call.report.findings for call in calls}
    found[None] = projected.findings
    settled = await findings.write_findings(conn, homeserver_id, room_key, since, found, gone, days_since=days_since)
    await totals.add(conn, homeserver_id, room_increments(settled.get(None, [])))
    rows: list[OutboxRow] = []
    for call in calls:
        call_id = call.report.call_id
        first_time = call_id not in known
        newly_ended = call.report.settled and not known.get(call_id, False)
        newly_settled = settled.get(call_id, [])
        if first_time or newly_ended or newly_settled:
            told = call if newly_ended else replace(call, report=replace(call.report, settled=False))
            if newly_ended and has_device:
                told = replace(call, undecryptable=await _undecryptable_keys(conn, homeserver_id, call))
            await totals.add(conn, homeserver_id, increments(told, newly_settled, newly_ended))
            rows.extend(projector.events(told, newly_settled, first_time))
    await outbox.put(conn, rows, now)


async def _undecryptable_keys(conn: Connection, homeserver_id: int, call: CallSession) -> tuple[UndecryptableKey, ...]:
    """Give what of a call's keys, or of what may have been some, our device could not open when it came."""
    sealed = {
        identity: each
        for each in call.distributions
        if each.evidence in (Evidence.INFERRED, Evidence.DECRYPTED)
        for identity in each.observations
    }
    noted = await load_undecryptable(conn, homeserver_id, sealed)
    return tuple(
        UndecryptableKey(
            identity=identity,
            sender=key.sender,
            key_transport=key.key_transport,
            at=key.at,
            evidence=key.evidence,
            reason=found.reason,
            withheld_code=found.withheld_code,
            opened_at=found.opened_at,
        )
        for identity, key in sealed.items()
        if (found := noted.get(identity)) is not None
    )


async def _place_envelopes(conn: Connection, projector: Projector) -> int:
    """Turn held envelopes between members of one call into observations of its room; give how many."""
    held = await envelopes.placeable(conn, projector.homeserver_id, projector.homeserver)
    if not held:
        return 0
    spans = await envelopes.stint_spans(conn, projector.homeserver_id, held)
    rooms: dict[str, RoomId] = {}
    for envelope in held:
        users = {envelope.body.sender, envelope.body.recipient}
        room_id = place(envelope, [span for user_id in users for span in spans.get(user_id, ())])
        if room_id is not None:
            rooms[envelope.identity] = room_id
    await envelopes.place(conn, projector.homeserver_id, rooms)
    return len(rooms)


def _redactions(observations: Sequence[Observation]) -> dict[EventId, datetime]:
    found: dict[EventId, datetime] = {}
    for observation in observations:
        if isinstance(observation.body, Redaction):
            found.setdefault(observation.body.redacts, observation.event_at)
    return found
