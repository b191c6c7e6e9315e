"""Stage 7: calls of a window, counted by the database: however many there are, what it hands over stays small."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from datetime import datetime

from rtc_appservice.core.tally import NO_BLOCKER_FOR, Blockers, CallCount, CauseCount, Tally
from rtc_appservice.core.words import BLOCKING_CAUSES, Coverage, Evidence, FallbackCause, FindingKind, Platform, Verdict
from rtc_appservice.store.pool import Connection


async def load_tally(conn: Connection, homeserver_ids: Sequence[int], since: datetime, now: datetime) -> Tally:
    """Count the calls of homeservers that started at `since` or later, or still go on."""
    counts = await conn.fetch(
        """
        SELECT (started_at AT TIME ZONE 'UTC')::date AS day, verdict, evidence, coverage, count(*) AS calls
        FROM (
            SELECT started_at, verdict, evidence, coverage FROM call_session
            WHERE homeserver_id = ANY($1::smallint[]) AND started_at >= $2
            UNION ALL
            SELECT started_at, verdict, evidence, coverage FROM call_session
            WHERE homeserver_id = ANY($1::smallint[]) AND started_at < $2 AND ended_at IS NULL
        ) AS call
        GROUP BY day, verdict, evidence, coverage ORDER BY day, verdict, evidence, coverage
        """,
        homeserver_ids,
        since,
    )
    going_on = await conn.fetchrow(
        """
        SELECT count(*) AS live, count(*) FILTER (WHERE EXISTS (
            SELECT FROM finding WHERE finding.room_key = call.room_key AND finding.call_id = call.call_id
                AND at >= call.started_at AND kind = $2)) AS split
        FROM call_session AS call WHERE homeserver_id = ANY($1::smallint[]) AND ended_at IS NULL
        """,
        homeserver_ids,
        str(FindingKind.SPLIT_CALL),
    )
    return Tally(
        counts=tuple(
            CallCount(
                day=row["day"],
                verdict=Verdict(row["verdict"]),
                evidence=Evidence(row["evidence"]),
                coverage=tuple(Coverage(source) for source in row["coverage"]),
                calls=row["calls"],
            )
            for row in counts
        ),
        causes=await _causes(conn, homeserver_ids, since),
        blockers=await _blockers(conn, homeserver_ids, since, now),
        live=going_on["live"] if going_on else 0,
        split=going_on["split"] if going_on else 0,
    )


#: The fallbacks of a window, of the calls that have some.
_FALLBACKS = """
WITH call AS (
    SELECT homeserver_id, report FROM call_session
    WHERE homeserver_id = ANY($1::smallint[]) AND started_at >= $2 AND fallbacks > 0
    UNION ALL
    SELECT homeserver_id, report FROM call_session
    WHERE homeserver_id = ANY($1::smallint[]) AND started_at < $2 AND ended_at IS NULL AND fallbacks > 0
), fallback AS (
    SELECT homeserver_id, report, one ->> 'user_id' AS user_id, one ->> 'device_id' AS device_id,
           one ->> 'cause' AS cause, one ->> 'evidence' AS evidence, (one ->> 'at')::timestamptz AS at
    FROM call, jsonb_array_elements(report -> 'fallbacks') AS one
)
"""


async def _causes(conn: Connection, homeserver_ids: Sequence[int], since: datetime) -> tuple[CauseCount, ...]:
    rows = await conn.fetch(
        _FALLBACKS  # noqa: S608 - both parts are constants
        + """
        SELECT cause, evidence, count(*) AS fallbacks, count(DISTINCT (user_id, device_id)) AS devices,
               max(at) AS last_seen_at
        FROM fallback GROUP BY GROUPING SETS ((cause), (cause, evidence)) ORDER BY cause
        """,
        homeserver_ids,
        since,
    )
    grades: dict[str, Counter[Evidence]] = defaultdict(Counter)
    for row in rows:
        if row["evidence"] is not None:
            grades[row["cause"]][Evidence(row["evidence"])] = row["fallbacks"]
    return tuple(
        CauseCount(
            cause=FallbackCause(row["cause"]),
            fallbacks=row["fallbacks"],
            devices=row["devices"],
            by_evidence=grades[row["cause"]],
            last_seen_at=row["last_seen_at"],
        )
        for row in rows
        if row["evidence"] is None
    )


async def _blockers(
    conn: Connection, homeserver_ids: Sequence[int], since: datetime, now: datetime
) -> tuple[Blockers, ...]:
    rows = await conn.fetch(
        _FALLBACKS  # noqa: S608 - both parts are constants
        + """
        SELECT cause, coalesce(generation, 'unknown') AS generation, coalesce(platform, $5) AS platform,
               count(DISTINCT (user_id, device_id)) AS devices, max(at) AS last_seen_at
        FROM fallback LEFT JOIN device_fact USING (homeserver_id, user_id, device_id), LATERAL (
            SELECT max(one ->> 'generation') AS generation FROM jsonb_array_elements(report -> 'participants') AS one
            WHERE one ->> 'user_id' = user_id AND one ->> 'device_id' = device_id
        ) AS client
        WHERE cause = ANY($3::text[]) AND at >= $4 GROUP BY 1, 2, 3
        """,
        homeserver_ids,
        since,
        [str(cause) for cause in BLOCKING_CAUSES],
        now - NO_BLOCKER_FOR,
        str(Platform.UNKNOWN),
    )
    found = [
        Blockers(
            cause=FallbackCause(row["cause"]),
            generation=row["generation"],
            platform=Platform(row["platform"]),
            devices=row["devices"],
            last_seen_at=row["last_seen_at"],
        )
        for row in rows
    ]
    return tuple(sorted(found, key=lambda each: (each.cause, each.generation, each.platform)))
