"""The service's own device in encrypted rooms of a real Synapse."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mautrix.api import Method
from mautrix.api import Path as ApiPath
from mautrix.types import RoomID, TrustState

from rtc_appservice.core.model import RoomHistory
from rtc_appservice.core.observed import MegolmEnvelope, Membership, Observation, RoomKey, ToDeviceKey
from rtc_appservice.core.words import Coverage, DeviceTrust, Evidence, RoomId, ServerName, Verdict
from rtc_appservice.demo.synapse import SERVER_NAME
from rtc_appservice.intake.device_keys import identity_of, sealed_by
from rtc_appservice.store.audited_rooms import want_room
from rtc_appservice.store.pool import Pool
from tests.acceptance.sealed_room import BOT, Service, equals, running_service, sealed_synapse, sender, until
from tests.core.build import project_room

Homeserver = tuple[str, Path, int]


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """Give a Synapse with the registration of the service."""
    async with sealed_synapse(tmp_path_factory.mktemp("synapse")) as given:
        yield given


async def room_keys(service: Service, room_id: str) -> list[RoomKey]:
    """Give the room keys that are recorded."""
    return [o.body for o in await service.observations(RoomId(room_id)) if isinstance(o.body, RoomKey)]


async def test_reads_what_it_is_sent(homeserver: Homeserver, pool: Pool) -> None:
    """Invited before the call, the device joins, is given keys, and reads room keys and to-device keys."""
    address, path, port = homeserver
    notice = "This room is audited."
    async with sender(address, "alice") as alice, running_service(pool, address, path, port, notice=notice) as service:
        room_id = await alice.make_room()
        await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
        await alice.call(room_id)
        await alice.share(room_id)
        await alice.send(room_id, "m.room.message", {"msgtype": "m.text", "body": "a secret message"})
        await alice.send_room_key(room_id, 0)
        await alice.send_to_device_key(room_id, 1, service.auditor.own.device[1])
        keys = await until(lambda: room_keys(service, room_id), "the room key was read")

        (sent,) = await until(lambda: to_device_keys(service, room_id), "the to-device key was read")

    assert [0] == [key.keys[0].index for key in keys]
    assert ("ALICE1", True) == (keys[0].sender_device_id, keys[0].encrypted)
    assert ("ALICE1", DeviceTrust.UNSIGNED, True) == (sent.sender_device_id, sent.trust, sent.device_matches)
    assert [] == [o for o in await service.observations(room_id) if isinstance(o.body, MegolmEnvelope)]
    assert 1 == await service.count("SELECT count(*) FROM crypto.room WHERE announced_at IS NOT NULL")
    assert BOT == service.auditor.own.device[0]


async def to_device_keys(service: Service, room_id: str) -> list[ToDeviceKey]:
    """Give the to-device keys that are recorded."""
    return [o.body for o in await service.observations(RoomId(room_id)) if isinstance(o.body, ToDeviceKey)]


async def envelopes(service: Service, room_id: str) -> list[MegolmEnvelope]:
    """Give the unreadable events that are recorded."""
    return [o.body for o in await service.observations(RoomId(room_id)) if isinstance(o.body, MegolmEnvelope)]


async def test_the_device_is_cross_signed_and_published(homeserver: Homeserver, pool: Pool) -> None:
    """Others find its keys, one-time keys and a fallback key, and its signature checks up to its master key."""
    address, path, port = homeserver
    async with running_service(pool, address, path, port) as service, sender(address, "signed") as alice:
        await until(lambda: service.count("SELECT count(*) FROM crypto.device WHERE signed_at IS NOT NULL"), "signed")
        answer = await alice.client.api.request(Method.POST, ApiPath.v3.keys.query, {"device_keys": {BOT: []}})
        device_id = service.auditor.own.device[1]
        (keys,) = [keys for name, keys in answer["device_keys"][BOT].items() if name == device_id]
        identity = identity_of(BOT, answer)
        plaintext = {"sender_device_keys": keys, "keys": {"ed25519": keys["keys"][f"ed25519:{device_id}"]}}
        found = sealed_by(plaintext, BOT, service.auditor.own.identity_key, identity)
        claimed = []
        for _ in range(55):  # more than there are one-time keys: the fallback key is given to whoever comes then
            wanted = {"one_time_keys": {BOT: {device_id: "signed_curve25519"}}}
            answer = await alice.client.api.request(Method.POST, ApiPath.v3.keys.claim, wanted)
            (key,) = answer["one_time_keys"][BOT][device_id].values()
            claimed.append(key)

    assert DeviceTrust.CROSS_SIGNED is found.trust
    assert any(key.get("fallback") for key in claimed)


async def test_events_are_read_again_when_their_session_comes(homeserver: Homeserver, pool: Pool) -> None:
    """Until then they are kept by their id; then the homeserver gives them again, also after a restart."""
    address, path, port = homeserver
    async with sender(address, "late") as alice:
        async with running_service(pool, address, path, port) as service:
            room_id = await alice.make_room()
            await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            await alice.call(room_id)
            await alice.share(room_id, with_device=False)
            sealed = await alice.send_room_key(room_id, 3)
            await alice.send(room_id, "m.room.message", {"msgtype": "m.text", "body": "a secret message"})
            await until(lambda: envelopes(service, room_id), "the sealed event was recorded")
            waiting = "SELECT count(*) FROM crypto.unread_event WHERE reason = 'missing_session'"
            await until(lambda: equals(service.count(waiting), 2), "two events wait")
            device_id = service.auditor.own.device[1]
        # While the service is down the session is handed over after all.
        await alice.hand_over(room_id, device_id)
        async with running_service(pool, address, path, port) as service:
            assert device_id == service.auditor.own.device[1]
            (key,) = await until(lambda: room_keys(service, room_id), "the room key was read")
            await until(
                lambda: equals(service.count("SELECT count(*) FROM crypto.unread_event WHERE waiting"), 0), "none waits"
            )
            left = await envelopes(service, room_id)
            identities = [o.identity for o in await service.observations(room_id) if isinstance(o.body, RoomKey)]

    assert 3 == key.keys[0].index
    assert [] == left
    assert [sealed] == identities


async def test_enters_no_room_by_itself(homeserver: Homeserver, pool: Pool) -> None:
    """An invitation by somebody who may not is not followed; what a command asks for is, and leaving ends it."""
    address, path, port = homeserver
    async with (
        running_service(pool, address, path, port, invited_by=("@somebody:else.test",)) as service,
        sender(address, "stranger") as alice,
    ):
        refused, asked = await alice.make_room(), await alice.make_room()
        async with pool.acquire() as conn:
            await want_room(conn, service.intake.homeserver_id, asked, wanted=True)
        service.look_at_rooms()
        await until(lambda: asked in service.auditor.own.rooms, "the device joined the room it was asked into")
        entered = refused in service.auditor.own.rooms
        async with pool.acquire() as conn:
            await want_room(conn, service.intake.homeserver_id, asked, wanted=False)
        service.look_at_rooms()
        await until(lambda: asked not in service.auditor.own.rooms, "the device left")
        await alice.call(asked)
        await alice.share(asked)
        await alice.send_room_key(asked, 0)
        # A later event of another room shows that those of this one have been taken.
        await alice.call(refused)
        await until(lambda: service.observations(refused), "the later event was recorded")

    assert not entered
    assert [] == await room_keys(service, asked)
    assert 0 == await service.count("SELECT count(*) FROM crypto.room")


async def test_takes_part_in_calls_where_asked(homeserver: Homeserver, pool: Pool) -> None:
    """Moderators ask by room state: it joins while somebody else is in the call, says so, and leaves with the last."""
    address, path, port = homeserver
    async with sender(address, "host") as alice:
        async with running_service(pool, address, path, port, witness_notice="I take part.") as service:
            room_id = await alice.make_room()
            await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            await alice.call(room_id)
            await alice.put_state(room_id, "rtc_appservice.witness", {"enabled": True})
            await until(lambda: alice.members(room_id, BOT), "the device joined the call")
            await alice.send_to_device_key(room_id, 0, service.auditor.own.device[1])
            await until(lambda: to_device_keys(service, room_id), "its key was read")
            await alice.call(room_id, live=False)
            await until(lambda: alice.left(room_id, BOT), "the device left with the last")
            await alice.call(room_id)
            await until(lambda: alice.members(room_id, BOT), "the device joined once more")
            history = await service.history(room_id, loss_free=True)
        # It has left by itself as the service stopped: the homeserver would have ended its membership seconds later.
        left = await alice.left(room_id, BOT)

    report = project_room(history)[0].report
    assert left
    assert Coverage.WITNESS in report.coverage
    assert (1, 0) == (report.deliveries.to_device, report.obligations.missing)


@pytest.mark.parametrize(
    ("invited", "coverage", "evidence"),
    [
        ("before", Coverage.TIMELINE, {Evidence.DECRYPTED}),
        ("during", Coverage.TIMELINE_PARTIAL, {Evidence.DECRYPTED, Evidence.INFERRED}),
        ("after", Coverage.TIMELINE_PARTIAL, {Evidence.INFERRED}),
    ],
)
async def test_calls_it_is_invited_to(
    homeserver: Homeserver, pool: Pool, invited: str, coverage: Coverage, evidence: set[Evidence]
) -> None:
    """What was sent before it came stays sealed: seen by its length, and the call is covered in part."""
    address, path, port = homeserver
    async with (
        running_service(pool, address, path, port) as service,
        sender(address, f"ann-{invited}") as ann,
        sender(address, f"bob-{invited}") as bob,
    ):
        room_id = await ann.make_room(invite=invited == "before", also=[bob.client.mxid])
        await bob.client.join_room_by_id(RoomID(room_id))

        async def enters(when: str) -> bool:
            if when == invited != "before":
                await ann.invite(room_id)
            if when == invited:
                await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
            return room_id in service.auditor.own.rooms

        await enters("before")
        for caller in (ann, bob):
            await caller.call(room_id)
        for sent, when in enumerate(("before", "during")):
            inside = await enters(when)
            for caller in (ann, bob):
                await caller.share(room_id, with_device=inside)
                await caller.send_room_key(room_id, sent)
                await caller.send(room_id, "m.room.message", {"msgtype": "m.text", "body": "no key at all"})
        for caller in (ann, bob):
            await caller.call(room_id, live=False)
        await enters("after")

        async def keys() -> list[Observation]:
            found = await service.observations(room_id)
            ended = sum(isinstance(o.body, Membership) and not o.body.live for o in found)
            sealed = [o for o in found if isinstance(o.body, RoomKey | MegolmEnvelope)]
            read_all = (
                sum(isinstance(o.body, RoomKey) for o in sealed) >= {"before": 4, "during": 2, "after": 0}[invited]
            )
            return found if ended == 2 and len(sealed) >= 4 and read_all else []

        observations = await until(keys, "all was recorded")
    history = RoomHistory(
        homeserver=ServerName(SERVER_NAME),
        room_id=room_id,
        observations=tuple(observations),
        watermark_at=datetime.now(UTC) + timedelta(minutes=5),
        envelopes=False,
    )
    ((session,),) = (project_room(history),)
    report = session.report

    assert (Verdict.ROOM_EVENT, 4) == (report.verdict, report.distributions.room_event)
    assert (coverage,) == report.coverage
    assert (True, True) == (report.beginning_seen, report.encrypted_room)  # the registration shows every room
    assert evidence == {distribution.evidence for distribution in session.distributions}


async def test_senders_that_exclude_unsigned_devices(homeserver: Homeserver, pool: Pool) -> None:
    """The device is cross-signed, so they hand it their sessions all the same."""
    address, path, port = homeserver
    async with running_service(pool, address, path, port) as service, sender(address, "strict") as alice:
        await until(lambda: service.count("SELECT count(*) FROM crypto.device WHERE signed_at IS NOT NULL"), "signed")
        alice.machine.send_keys_min_trust = TrustState.CROSS_SIGNED_TOFU
        room_id = await alice.make_room()
        await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
        await alice.call(room_id)
        await alice.share(room_id)
        await alice.send_room_key(room_id, 0)
        keys = await until(lambda: room_keys(service, room_id), "the room key was read")

    assert 1 == len(keys)


async def test_a_room_that_it_cannot_enter_is_given_up(
    homeserver: Homeserver, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    """Added by mistake, it is refused with a word of what to do; removed again, it is forgotten."""
    address, path, port = homeserver
    room_id = RoomId("!nowhere:rtc.test")
    async with running_service(pool, address, path, port) as service:
        for wanted, there in ((True, 1), (False, 0)):
            async with pool.acquire() as conn:
                await want_room(conn, service.intake.homeserver_id, room_id, wanted=wanted)
            service.look_at_rooms()
            if wanted:
                await until(lambda: "could not be joined" in caplog.text, "the room was refused")
                service.auditor._rooms.not_before.clear()  # the time until the next try is over
            count = "SELECT count(*) FROM crypto.room WHERE room_id = $1"
            await until(lambda: equals(service.count(count, room_id), there), f"{there} rooms")  # noqa: B023

    assert [True] == ["`rtc-appservice room list`" in vars(r)["hint"] for r in caplog.records if "joined" in r.message]
