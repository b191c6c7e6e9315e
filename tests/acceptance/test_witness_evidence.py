"""What the service's own device in a call proves: from a real Synapse through store and projection to what is sent."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

from mautrix.api import Method
from mautrix.api import Path as ApiPath

from rtc_appservice.core.model import CallReport, Settings
from rtc_appservice.core.observed import ToDeviceKey
from rtc_appservice.core.words import Coverage, Evidence, FindingKind, Outcome, RoomId, ServerName
from rtc_appservice.demo.synapse import SERVER_NAME
from rtc_appservice.export.events import Terms, event_maker
from rtc_appservice.intake.transaction import now_utc
from rtc_appservice.projector import Projector, project_once
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.sessions import load_calls
from rtc_appservice.view.stored_call import explain_call
from tests.acceptance.callers import in_call
from tests.acceptance.sealed_room import BOT, SECRET, Sender, Service, running_service, sealed_synapse, sender, until

WITNESS = "rtc_appservice.witness"
#: A minute is long for a test.
SOON = Settings(grace_seconds=2, horizon_seconds=3, late_seconds=1)
SENDERS = 10
EACH = 20


async def room_with_device(service: Service, caller: Sender, *others: Sender) -> RoomId:
    """Give a room with some in it, and the device, which is to take part in its calls."""
    room_id = await caller.make_room(also=[other.client.mxid for other in others])
    for other in others:
        await other.client.api.request(Method.POST, ApiPath.v3.join[room_id], {})
    await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
    await caller.put_state(room_id, WITNESS, {"enabled": True})
    return room_id


async def test_a_key_that_is_not_sent_is_missing(tmp_path: Path, pool: Pool) -> None:
    """Alice hands the device her key and Bob does not: his is missing, and both are known directly."""
    async with (
        sealed_synapse(tmp_path) as (address, path, port),
        sender(address, "alice") as alice,
        sender(address, "bob") as bob,
        running_service(pool, address, path, port) as service,
    ):
        projector = Projector(
            homeserver=ServerName(SERVER_NAME),
            homeserver_id=service.intake.homeserver_id,
            envelopes=False,
            settings=SOON,
            events=event_maker(Terms(secret=SECRET, app_version="1.2.3")),
        )
        room_id = await room_with_device(service, alice, bob)
        await alice.call(room_id)
        await until(lambda: in_call(alice, room_id), "the device joined the call")
        await alice.send_to_device_key(room_id, 0, service.auditor.own.device[1])
        await bob.call(room_id)

        async def settled() -> list[CallReport]:
            # Time goes on by what the homeserver tells, whatever it is.
            await alice.put_state(room_id, "org.example.tick", {"now": now_utc().isoformat()})
            await service.intake.beat()
            await project_once(pool, projector, now_utc())
            async with pool.acquire() as conn:
                exported = await conn.fetchval("SELECT count(*) FROM outbox WHERE event = 'RtcKeyNotReceived'")
                return await load_calls(conn) if exported else []

        (call,) = await until(settled, "what was not received was told")
        told = await explain_call(pool, call.call_id, SOON)
        async with pool.acquire() as conn:
            sent = await conn.fetch("SELECT properties FROM outbox WHERE event = 'RtcKeyNotReceived'")

    owed = {key.sender.device_id: key for key in told.owed if key.recipient.user_id == BOT}
    assert {"ALICE1": Outcome.DELIVERED, "BOB1": Outcome.MISSING} == {name: key.outcome for name, key in owed.items()}
    assert {Evidence.DIRECT} == {key.evidence for key in owed.values()}
    assert Coverage.WITNESS in call.coverage
    (finding,) = [found for found in call.findings if found.kind is FindingKind.KEY_NOT_RECEIVED]
    assert (Evidence.DIRECT, "BOB1", "missing") == (
        finding.evidence,
        finding.subject and finding.subject.device_id,
        finding.details["outcome"],
    )
    (row,) = (json.loads(row["properties"]) for row in sent)
    assert ("missing", "direct") == (row["outcome"], row["evidence"])
    assert (call.coverage, call.obligations, call.verdict, call.beginning_seen) == (
        told.call.coverage,
        told.call.obligations,
        told.call.verdict,
        told.call.beginning_seen,
    )


async def test_loses_nothing_of_what_races(tmp_path: Path, pool: Pool) -> None:
    """Ten senders, twenty keys each, all ten at once: Synapse leaves some out of its transactions, `/sync` has all."""
    async with sealed_synapse(tmp_path) as (address, path, port), AsyncExitStack() as stack:
        callers = [await stack.enter_async_context(sender(address, f"caller{n}")) for n in range(SENDERS)]
        service = await stack.enter_async_context(running_service(pool, address, path, port))
        room_id = await room_with_device(service, callers[0])
        device_id = service.auditor.own.device[1]

        async def one_round(index: int) -> None:
            await asyncio.gather(
                *(caller.send_to_device_key(room_id, index, device_id) for caller in callers),
                *(caller.send_nothing_to(caller.client.mxid, caller.client.device_id) for caller in callers),
            )

        await callers[0].call(room_id)
        await until(lambda: in_call(callers[0], room_id), "the device joined the call")
        for index in range(EACH):
            await one_round(index)

        async def read() -> set[tuple[str, int]]:
            found = [o.body for o in await service.observations(room_id) if isinstance(o.body, ToDeviceKey)]
            assert len(found) <= SENDERS * EACH
            return {(body.sender, body.keys[0].index) for body in found}

        wanted = {(caller.client.mxid, index) for caller in callers for index in range(EACH)}

        async def all_read() -> bool:
            return not wanted - await read()

        await until(all_read, "all were read")
        assert wanted == await read()
        assert 0 == await service.count("SELECT count(*) FROM gap WHERE reason = 'undecryptable'")
