"""Stage 7: one call told in full, from the observations in the database."""

from datetime import datetime, timedelta

from msgspec.structs import replace

from rtc_appservice.core.envelope import KEY_AFTER_STINT
from rtc_appservice.core.explain import CallExplanation, explain
from rtc_appservice.core.fallback import HISTORY
from rtc_appservice.core.model import RoomHistory, Settings
from rtc_appservice.core.platform import with_platforms
from rtc_appservice.core.words import Coverage, DeviceId, UserId
from rtc_appservice.errors import InputError
from rtc_appservice.store.crypto import own_devices
from rtc_appservice.store.device_facts import load_platforms
from rtc_appservice.store.gaps import load_gaps
from rtc_appservice.store.observations import load_room
from rtc_appservice.store.pool import WORK_SECONDS, Connection, Pool, lend
from rtc_appservice.store.projection import first_overlapping
from rtc_appservice.store.sessions import StoredCall, find_calls, load_to_device_seen


async def explain_call(
    pool: Pool, prefix: str, settings: Settings, *, seconds: float = WORK_SECONDS
) -> CallExplanation:
    """
    Tell the call whose id begins with `prefix`, worked out anew from its observations.

    Raises:
        StoreUnavailable: if the database takes longer than `seconds`.
        InputError: if there is no such call, several, or its observations are gone by retention.
    """
    async with lend(pool, seconds) as conn:
        found = await find_calls(conn, prefix)
        if not found:
            raise InputError(f"There is no call {prefix} in the database; `rtc-appservice report` lists their ids")
        if len(found) > 1:
            raise InputError(f"Several calls begin with {prefix}; give more of the id")
        history = await _history(conn, found[0])
        platforms = await load_platforms(conn, found[0].homeserver_id)
    told = explain(history, found[0].report.call_id, settings)
    if told is None:
        raise InputError(f"The observations of call {prefix} are gone (retention); its report is all that is left")
    return replace(told, call=with_platforms([told.call], platforms)[0])


async def _history(conn: Connection, stored: StoredCall) -> RoomHistory:
    report = stored.report
    since = await first_overlapping(conn, stored.room_key, report.started_at - KEY_AFTER_STINT - timedelta(hours=1))
    devices = [(fallback.user_id, fallback.device_id) for fallback in report.fallbacks]
    seen = await load_to_device_seen(conn, stored.homeserver_id, devices, report.started_at - HISTORY)
    earlier: dict[tuple[UserId, DeviceId], datetime] = {}
    for (user_id, device_id, call_id), at in seen.items():
        if call_id != report.call_id and at < report.started_at:
            earlier[(user_id, device_id)] = max(at, earlier.get((user_id, device_id), at))
    return RoomHistory(
        homeserver=report.homeserver,
        room_id=report.room_id,
        observations=tuple(await load_room(conn, report.homeserver, report.room_id, stored.room_key, since)),
        watermark_at=stored.watermark_at,
        envelopes=Coverage.ENVELOPES in report.coverage,
        gaps=tuple(await load_gaps(conn, stored.homeserver_id, since, report.room_id)),
        watched_since=stored.watched_since,
        witnesses=await own_devices(conn, stored.homeserver_id),
        loss_free=True,
        to_device_history=earlier,
    )
