"""A user is told what is held, and forgotten: nothing names the user any more, and nothing else changes."""

import asyncio
import json
import logging
from dataclasses import replace
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from rtc_appservice.core import notices
from rtc_appservice.core.model import CallReport
from rtc_appservice.core.observed import HeldEnvelope, Observation, RoomKey
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import DeviceId, DeviceTrust, FallbackCause, ServerName, UserId
from rtc_appservice.errors import InputError
from rtc_appservice.export.events import Terms as ExportTerms
from rtc_appservice.export.events import event_maker
from rtc_appservice.export.pseudonym import Pseudonyms
from rtc_appservice.person import Held, Terms, find, forget
from rtc_appservice.projector import Projector, replay
from rtc_appservice.store import crypto, outbox
from rtc_appservice.store.notices import mark_posted, posted_about
from rtc_appservice.store.partitions import MAINTENANCE_LOCK
from rtc_appservice.store.person import TABLES
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.streams import open_stream
from rtc_appservice.store.undecryptable import load_undecryptable

from .core.build import at
from .test_live_rooms import played as play
from .test_projector import HOMESERVER, SCENARIOS, SECRET, Service, read
from .test_projector_rooms import SETTLED, strange
from .test_projector_rooms import each as transactions

TERMS = Terms(secret=SECRET, pseudonym_rotation_days=None)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
#: What a user's traffic can be recognised by, whoever is named beside.
KEYED = ("sender_key_id", "session_key_id", "tag", "membership_id")


async def played(pool: Pool, scenario: str) -> Service:
    """Take a recording, with events to PostHog, until all is settled."""
    service = await Service.open(pool)
    terms = ExportTerms(secret=SECRET, app_version="1.2.3")
    service.projector = replace(service.projector, events=event_maker(terms))
    intakes = read(scenario)
    for intake in intakes:
        await service.take(intake)
        await service.project()
    await service.settle(intakes)
    return service


def projector_of(service: Service) -> Any:
    """Give how `forget` is told to project: like the service, in a process of its own."""

    def give(name: ServerName, number: int) -> Projector:
        return Projector(homeserver=name, homeserver_id=number, envelopes=service.projector.envelopes)

    return give


async def forgotten(service: Service, user_id: UserId) -> int:
    """Forget a user."""
    async with service.pool.acquire() as conn:
        return await forget(conn, user_id, [HOMESERVER], projector_of(service), TERMS)


async def held(service: Service, user_id: UserId) -> list[Held]:
    """Give what is held of a user."""
    async with service.pool.acquire() as conn:
        return await find(conn, user_id, None, TERMS)


async def everything(pool: Pool) -> dict[str, list[str]]:
    """Give every row of every table, as text."""
    async with pool.acquire() as conn:
        tables = await conn.fetch(
            """
            SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
            WHERE schemaname IN ('public', 'crypto') ORDER BY 1
            """
        )
        queries = {row["name"]: f"SELECT t::text FROM {row['name']} t ORDER BY 1" for row in tables}  # noqa: S608
        return {name: [row[0] for row in await conn.fetch(query)] for name, query in queries.items()}


def users_of(calls: list[Any]) -> list[UserId]:
    """Give the users in calls."""
    return sorted({found.user_id for call in calls for found in call.participants})


def traces(intakes: list[Intake], user_id: UserId) -> set[str]:
    """Give what a user's own observations hold that others' do not: ids of devices, hashes of keys."""
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    for intake in intakes:
        arrived: list[Observation | HeldEnvelope] = [*intake.observations, *intake.envelopes]
        for body in (each.body for each in arrived):
            mine = body.sender == user_id
            for name in (*KEYED, "device_id", "claimed_device_id"):
                seen[mine].add(str(getattr(body, name, None)))
            seen[mine] |= {str(mark.tag) for mark in getattr(body, "keys", ())}
    return {user_id} | (seen[True] - seen[False] - {"None"})


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_nothing_else_changes(pool: Pool, scenario: str) -> None:
    """One user after the other is forgotten: nothing of them is left, and a replay changes nothing at all."""
    service = await played(pool, scenario)
    before = await service.calls()
    counted = await service.dump()

    for user_id in users_of(before):
        left = traces(read(scenario), user_id)
        assert await held(service, user_id)
        assert 0 < await forgotten(service, user_id)
        assert [] == await held(service, user_id)
        text = json.dumps(await everything(pool))
        assert set() == {trace for trace in left if trace in text}
    after = await service.calls()
    now = await service.dump()

    assert [masked(call) for call in before] == [masked(call) for call in after]
    same = [query for query in now if "rollup" in query or "dirty_room" in query]
    assert [counted[query] for query in same] == [now[query] for query in same]
    assert {query: len(rows) for query, rows in counted.items()} == {query: len(rows) for query, rows in now.items()}
    again = await replay(pool, service.projector, service.now)
    assert 0 == again.failed
    assert now == await service.dump()


@pytest.mark.parametrize("seed", [0, *range(1000, 1006)])
async def test_played_rooms(pool: Pool, seed: int) -> None:
    """The same in rooms with whatever else may happen: forged, malformed and late events, kicks, federated users."""
    server, intakes = play(seed, rough=seed >= 1000)
    async with pool.acquire() as conn:
        service = Service(pool, (await open_stream(conn, server)).homeserver_id)
    service.projector = replace(service.projector, homeserver=server)
    for intake in intakes:
        await service.take(intake)
        await service.project()
    await service.settle(intakes)
    counted = await service.dump()

    for user_id in users_of(await service.calls()):
        async with pool.acquire() as conn:
            await forget(conn, user_id, [server], projector_of(service), TERMS)
        assert user_id not in json.dumps(await everything(pool), ensure_ascii=False)

    now = await service.dump()
    assert {query: len(rows) for query, rows in counted.items()} == {query: len(rows) for query, rows in now.items()}
    assert 0 == (await replay(pool, service.projector, service.now)).failed
    assert now == await service.dump()


async def test_findings_of_a_room(pool: Pool) -> None:
    """Who sent something while no call went on, and whom a forged membership names, are forgotten like the others."""
    service, scene = await Service.open(pool), strange()
    alice, mallory = UserId("@alice:lab.test"), UserId("@mallory:lab.test")
    scene.join("mallory", 30, claimed_user_id=alice)
    scene.observations[-1] = msgspec.structs.replace(scene.observations[-1], late=True)
    for intake in transactions(scene):
        await service.take(intake)
        await service.project()
    await service.advance(at(SETTLED))
    await service.project()
    before = await service.dump()

    for user_id in (mallory, alice):
        assert 0 < await forgotten(service, user_id)
        assert user_id not in json.dumps(await everything(pool))
    now = await service.dump()
    assert {query: len(rows) for query, rows in before.items()} == {query: len(rows) for query, rows in now.items()}
    assert 0 == (await replay(pool, service.projector, service.now)).failed
    assert now == await service.dump()


@pytest.mark.parametrize("scenario", ["smart-switch", "modern-sticky", "crash-e2ee"])
async def test_in_the_middle_of_a_call(pool: Pool, scenario: str, caplog: pytest.LogCaptureFixture) -> None:
    """A service that remembers the room goes on with the tombstone; what the user does then is recorded anew."""
    service = await Service.open(pool)
    intakes = read(scenario)
    waiting = iter(intakes)
    while not any(len(users_of([call])) > 1 for call in await service.calls()):
        await service.take(next(waiting))
        await service.project()
    (user_id, *_) = users_of(await service.calls())
    (before,) = await held(service, user_id)
    identities = {row["identity"] for row in before.tables["observation"]}
    assert before.calls_going_on

    with caplog.at_level(logging.INFO):
        await forgotten(service, user_id)

    (line,) = caplog.records
    assert ("a user was forgotten", before.records) == (line.message, line.__dict__["records"])
    assert user_id not in str(line.__dict__)
    for intake in waiting:
        await service.take(intake)
        await service.project()
    await service.settle(intakes)
    anew = [row["identity"] for held_now in await held(service, user_id) for row in held_now.tables["observation"]]
    assert set() == identities & set(anew)
    now = await service.dump()
    assert 0 == (await replay(pool, service.projector, service.now)).failed
    assert now == await service.dump()


async def test_events_that_wait_name_the_tombstone(pool: Pool) -> None:
    """What PostHog is sent from then on it cannot join with what it had; the rest of each event stays."""
    service = await played(pool, "smart-switch")
    (user_id, *_) = users_of(await service.calls())
    (before,) = await held(service, user_id)
    known = {*before.exported.users, *before.exported.devices}
    assert before.outbox
    async with pool.acquire() as conn:
        sent = {row.row.uuid: row.row for row in await outbox.lease(conn, 1000, 0, service.now)}

    await forgotten(service, user_id)

    async with pool.acquire() as conn:
        now = {row.row.uuid: row.row for row in await outbox.lease(conn, 1000, 0, service.now)}
    assert sent.keys() == now.keys()
    changed = 0
    for uuid, row in sent.items():
        pairs = [(value, now[uuid].properties[name]) for name, value in row.properties.items()]
        assert all(old == new for old, new in pairs if not isinstance(old, str) or old not in known)
        changed += sum(old != new for old, new in pairs)
        assert (row.event, row.distinct_id, row.timestamp) == (
            now[uuid].event,
            now[uuid].distinct_id,
            now[uuid].timestamp,
        )
        assert not known & set(map(str, now[uuid].properties.values()))
    assert before.outbox <= changed
    assert before.exported.distinct_ids == [f"call:{Pseudonyms(SECRET).call((await service.calls())[0].call_id)}"]


async def test_a_split_is_not_posted_again(pool: Pool) -> None:
    """The operator's room was told under an id that has the user in it."""
    service = await played(pool, "crash")
    (call, *_) = [call for call in await service.calls() if any(each.kind == "split_call" for each in call.findings)]
    going_on = msgspec.structs.replace(call, ended_at=None)
    async with pool.acquire() as conn:
        for notice in notices.alarms([going_on], ()):
            await mark_posted(conn, service.homeserver_id, notice.notice_id, service.now)

    for user_id in users_of([call]):
        await forgotten(service, user_id)

    (after, *_) = [each for each in await service.calls() if each.call_id == call.call_id]
    assert {each.finding_id for each in after.findings} != {each.finding_id for each in call.findings}
    async with pool.acquire() as conn:
        posted = await posted_about(conn, service.homeserver_id, [call.call_id])
    assert [] == notices.alarms([msgspec.structs.replace(after, ended_at=None)], posted)


async def test_a_finding_no_projection_finds_any_more(pool: Pool) -> None:
    """Its observations are gone by retention: the call and its finding name the tombstone, under one new id."""
    service = await played(pool, "legacy-only")
    (call,) = await service.calls()
    user_id = call.fallbacks[0].user_id
    of_user = {each.finding_id for each in call.findings if each.subject and each.subject.user_id == user_id}
    of_others = {each.finding_id for each in call.findings} - of_user
    async with pool.acquire() as conn:
        await conn.execute("DELETE FROM observation")

    await forgotten(service, user_id)

    (after,) = await service.calls()
    async with pool.acquire() as conn:
        stored = {str(row["finding_id"]) for row in await conn.fetch("SELECT finding_id FROM finding")}
    assert stored == {each.finding_id for each in after.findings}
    assert len(stored) == len(call.findings)
    assert of_user and of_others
    assert of_others == stored & (of_user | of_others)
    assert user_id not in json.dumps(await everything(pool))


async def test_a_cause_that_rests_on_earlier_calls(pool: Pool) -> None:
    """That the device sent by to-device before is known of the tombstone, too: its fallback keeps cause and id."""
    observations = [each for intake in read("legacy-only") for each in intake.observations]
    (first, *_) = [(each.event_at, each.body) for each in observations if isinstance(each.body, RoomKey)]
    service = await Service.open(pool)
    async with pool.acquire() as conn:
        await conn.execute(
            """
            INSERT INTO to_device_history (homeserver_id, user_id, device_id, call_id, at)
            VALUES ($1, $2, $3, 'an earlier call', $4)
            """,
            service.homeserver_id,
            first[1].sender,
            first[1].device_id,
            first[0] - timedelta(days=1),
        )
    service = await played(pool, "legacy-only")
    before = [fallback.cause for call in await service.calls() for fallback in call.fallbacks]

    await forgotten(service, first[1].sender)

    after = [fallback.cause for call in await service.calls() for fallback in call.fallbacks]
    now = await service.dump()
    assert FallbackCause.GAVE_UP in before
    assert before == after
    assert 0 == (await replay(pool, service.projector, service.now)).failed
    assert now == await service.dump()


async def test_the_device_of_the_service(pool: Pool) -> None:
    """Sessions with the user's devices are told by number only, and dropped; others' stay; its own user stays."""
    service = await played(pool, "smart-switch")
    user_id, other, *_ = users_of(await service.calls())
    (row, *_) = [
        row for row in (await held(service, user_id))[0].tables["observation"] if row["body"].get("sender") == user_id
    ]
    async with pool.acquire() as conn:
        number = service.homeserver_id
        await crypto.add_device(conn, number, UserId("@auditor:lab.test"), DeviceId("A"), "PICKLE")
        sessions = [
            (owner, key, f"session of {key}", "PICKLE")
            for owner, key in ((user_id, "one key"), (user_id, "a key of no message"), (other, "another key"))
        ]
        await crypto.save_olm_sessions(conn, number, sessions, service.now, 4, 4)
        place = crypto.IndexRow("megolm", user_id, 0, "$opened", None)
        await crypto.save_indices(conn, number, [place, msgspec.structs.replace(place, owner=other)], service.now)
        rows = [
            crypto.MegolmRow(
                room_id=(await service.calls())[0].room_id,
                session_id=f"megolm of {owner}",
                owner=owner,
                sender_key=key,
                device_id=None,
                trust=DeviceTrust.UNKNOWN,
                first_index=0,
                pickle="PICKLE",
            )
            for owner, key in ((user_id, "one key"), (other, "another key"))
        ]
        await crypto.save_megolm_sessions(conn, number, rows, service.now)
        await conn.execute(
            """
            INSERT INTO crypto.unread_event (homeserver_id, event_id, room_id, session_id, sender, reason, noted_at)
            VALUES ($1, $2, '!a', 'the same session', $4, 'missing_session', $3),
                ($1, '$no longer observed', '!a', 'the same session', $4, 'missing_session', $3),
                ($1, '$later', '!a', 'the same session', $5, 'missing_session', $3)
            """,
            number,
            row["identity"],
            service.now,
            user_id,
            other,
        )
        await conn.execute(
            """
            INSERT INTO crypto.withheld_session (homeserver_id, room_id, session_id, sender, code, noted_at)
            VALUES ($1, '!a', 'the same session', $3, 'm.unverified', $2)
            """,
            number,
            service.now,
            user_id,
        )
        (before,) = (await load_undecryptable(conn, number, [row["identity"]])).values()
    (found,) = await held(service, user_id)
    assert (2, 1, {row["identity"]: "the same session"}) == (
        found.olm_sessions,
        found.megolm_sessions,
        found.unread_events,
    )
    assert "PICKLE" not in repr(found)

    await forgotten(service, user_id)

    left = await everything(pool)
    assert 1 == len(left["crypto.olm_session"]) == len(left["crypto.megolm_session"])
    assert "another key" in left["crypto.olm_session"][0]
    assert 1 == len(left["crypto.megolm_index"])
    assert [] == [row for table, rows in left.items() if table.startswith("crypto.") for row in rows if user_id in row]
    async with pool.acquire() as conn:
        (event,) = await conn.fetch("SELECT * FROM crypto.unread_event WHERE event_id = $1", row["identity"])
        assert (False, True) == (event["waiting"], event["session_id"] != "the same session")
        assert [before] == list((await load_undecryptable(conn, number, [row["identity"]])).values())
        assert await conn.fetchval("SELECT waiting FROM crypto.unread_event WHERE event_id = '$later'")
    with pytest.raises(InputError, match="own device"):
        await forgotten(service, UserId("@auditor:lab.test"))


async def test_while_the_service_works(pool: Pool) -> None:
    """Transactions come and rooms are projected meanwhile: nobody waits for ever, and nothing is told twice."""
    service = await Service.open(pool)
    intakes = read("smart-switch")
    waiting = iter(intakes)
    while not any(len(users_of([call])) > 1 for call in await service.calls()):
        await service.take(next(waiting))
        await service.project()
    (user_id, *_) = users_of(await service.calls())

    async def work() -> None:
        for intake in waiting:
            await service.take(intake)
            await service.project()

    async with asyncio.timeout(60):
        await asyncio.gather(work(), forgotten(service, user_id))
    await service.settle(intakes)

    now = await service.dump()
    assert 0 == (await replay(pool, service.projector, service.now)).failed
    assert now == await service.dump()


@pytest.mark.parametrize(
    "held_by_others",
    ["SELECT FROM crypto.device FOR UPDATE", f"SELECT pg_advisory_xact_lock({MAINTENANCE_LOCK})"],
    ids=["a transaction that the device opens", "the upkeep of the partitions"],
)
async def test_waits_for_those_who_write_meanwhile(pool: Pool, held_by_others: str) -> None:
    """What is being written names the user still, and partitions come and go: forgetting waits for their end."""
    service = await played(pool, "smart-switch")
    (user_id, *_) = users_of(await service.calls())
    async with pool.acquire() as conn:
        await crypto.add_device(conn, service.homeserver_id, UserId("@auditor:lab.test"), DeviceId("A"), "PICKLE")
    async with asyncio.timeout(60):
        async with pool.acquire() as conn, conn.transaction():
            await conn.execute(held_by_others)
            forgetting = asyncio.create_task(forgotten(service, user_id))
            while not forgetting.done() and not await pool.fetchval(WAITING):
                await asyncio.sleep(0.01)
            assert not forgetting.done()
        await forgetting

    assert [] == await held(service, user_id)


#: Tables that name no user, whatever is in them.
OF_NOBODY = {
    "alembic_version",
    "crypto.room",
    "crypto.taken_message",
    "crypto.unread_message",
    "dirty_room",
    "gap",
    "homeserver",
    "observation_identity",
    "projection",
    "rollup",
    "room",
    "stream",
}
#: Tables that do, but not by an id that is looked for: outbox by pseudonyms, notices by findings, crypto by keys.
LOOKED_AFTER = {
    "crypto.device",
    "crypto.megolm_index",
    "crypto.megolm_session",
    "crypto.olm_session",
    "crypto.unread_event",
    "crypto.withheld_session",
    "notice",
    "outbox",
}


async def test_every_table_was_thought_of(pool: Pool) -> None:
    """A new one stands in one of these lists, or is looked through."""
    async with pool.acquire() as conn:
        rows = await conn.fetch(
            """
            SELECT replace(format('%I.%I', schemaname, tablename), 'public.', '') AS name FROM pg_tables
            WHERE schemaname IN ('public', 'crypto') AND tablename !~ '_(default|p[0-9]{8})$'
            """
        )

    assert {row["name"] for row in rows} == OF_NOBODY | LOOKED_AFTER | set(TABLES)


def masked(call: CallReport) -> dict[str, Any]:
    """Give a call's report with each user and device by the place where it first stands, and without finding ids."""
    names: dict[str, str] = {}
    for number, each in enumerate(call.participants):
        names[each.user_id] = f"user {number}"
        names[each.device_id] = f"device {number}"

    def mask(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: mask(item) for name, item in value.items() if name != "finding_id"}
        if isinstance(value, list):
            return [mask(item) for item in value]
        return names.get(value, value) if isinstance(value, str) else value

    report: dict[str, Any] = mask(json.loads(msgspec.json.encode(call)))
    report["findings"].sort(key=json.dumps)
    return report
