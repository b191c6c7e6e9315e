"""The service's own device as a member of calls on a real Synapse: when it joins and how, and when it leaves."""

import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mautrix.api import Method
from mautrix.api import Path as ApiPath

from rtc_appservice.core.observed import Membership, ToDeviceKey
from rtc_appservice.core.words import RoomId
from rtc_appservice.demo import synapse
from rtc_appservice.intake.call_api import CallApi
from rtc_appservice.intake.call_form import OwnMembership
from rtc_appservice.intake.device_api import DeviceApi
from rtc_appservice.store.audited_rooms import want_room, want_witness
from rtc_appservice.store.pool import Pool
from tests.acceptance.callers import (
    STATE_TYPE,
    STICKY_TYPE,
    StickyCaller,
    in_call,
    is_join,
    of_device,
    was_in_call,
)
from tests.acceptance.sealed_room import (
    BOT,
    Sender,
    Service,
    running_service,
    sealed_synapse,
    sender,
    until,
)

Homeserver = tuple[str, Path, int]
#: A minute is long for a test.
FORBIDDEN_SECONDS = 8.0
ASKED = {"enabled": True}
WITNESS = "rtc_appservice.witness"


@pytest.fixture(scope="module")
async def homeserver(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Homeserver]:
    """Give a Synapse with the registration of the service."""
    async with sealed_synapse(tmp_path_factory.mktemp("synapse")) as given:
        yield given


async def asked_into(service: Service, caller: Sender) -> RoomId:
    """Give a room with the device in it, asked to take part in its calls."""
    room_id = await caller.make_room()
    await until(lambda: room_id in service.auditor.own.rooms, "the device joined")
    await caller.put_state(room_id, WITNESS, ASKED)
    return room_id


async def recorded(service: Service, room_id: RoomId, wanted: int) -> bool:
    """Tell whether so many call memberships are recorded."""
    return wanted == sum(isinstance(o.body, Membership) for o in await service.observations(room_id))


async def keys_read(service: Service, room_id: RoomId) -> list[ToDeviceKey]:
    """Give the to-device keys that are recorded."""
    return [o.body for o in await service.observations(room_id) if isinstance(o.body, ToDeviceKey)]


@pytest.mark.parametrize("dialect", ["js_39", "js_41", "js_43"])
async def test_sticky_calls(homeserver: Homeserver, pool: Pool, dialect: str) -> None:
    """Where the others are sticky members it is one of their dialect, and leaves with the last as they do."""
    address, path, port = homeserver
    async with sender(address, f"sticky-{dialect}") as alice, running_service(pool, address, path, port) as service:
        room_id = await asked_into(service, alice)
        caller = StickyCaller(alice, dialect)
        await alice.share(room_id)
        await caller.call(room_id, sealed=True)
        await until(lambda: in_call(alice, room_id, kind=STICKY_TYPE), "the device joined the call")
        await alice.send_to_device_key(room_id, 0, service.auditor.own.device[1])
        await until(lambda: keys_read(service, room_id), "its key was read")
        await caller.call(room_id, live=False)
        await until(lambda: was_in_call(alice, room_id), "the device left with the last")
        join, leave = await of_device(alice, room_id)

    assert join["content"]["msc4354_sticky_key"] == leave["content"]["msc4354_sticky_key"]
    assert {"duration_ms": 3_600_000} == join["msc4354_sticky"] == leave["msc4354_sticky"]
    assert (dialect == "js_43") is ("transports" in join["content"])
    assert (dialect == "js_39") is join["content"]["slot_id"].endswith("#")


async def test_the_state_form_is_seen_by_all(
    homeserver: Homeserver, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once somebody joins by room state, the device is a member by room state, and back when only sticky ones stay."""
    # It goes by the events: what is looked at now and then would come too late.
    monkeypatch.setattr("rtc_appservice.intake.room_keeper.LOOK_SECONDS", 600.0)
    address, path, port = homeserver
    async with (
        sender(address, "newer") as alice,
        sender(address, "older") as bob,
        running_service(pool, address, path, port) as service,
    ):
        room_id = await asked_into(service, alice)
        await alice.client.api.request(Method.POST, ApiPath.v3.rooms[room_id].invite, {"user_id": bob.client.mxid})
        await bob.client.api.request(Method.POST, ApiPath.v3.join[room_id], {})
        await StickyCaller(alice, "js_43").call(room_id)
        await until(lambda: in_call(alice, room_id, kind=STICKY_TYPE), "the device joined the call")
        await bob.call(room_id)
        await until(lambda: in_call(alice, room_id, kind=STATE_TYPE), "the device joined by room state")
        await bob.call(room_id, live=False)
        await until(lambda: in_call(alice, room_id, kind=STICKY_TYPE), "the device is a sticky member again")
        found = [(event["type"], is_join(event)) for event in await of_device(alice, room_id)]

    assert [
        (STICKY_TYPE, True),
        (STICKY_TYPE, False),
        (STATE_TYPE, True),
        (STATE_TYPE, False),
        (STICKY_TYPE, True),
    ] == found


@pytest.mark.parametrize("sticky", [False, True])
async def test_joins_a_call_that_goes_on_when_invited(homeserver: Homeserver, pool: Pool, sticky: bool) -> None:
    """The room's wish and its call are older than the invitation."""
    address, path, port = homeserver
    async with sender(address, f"going-{sticky}") as alice, running_service(pool, address, path, port) as service:
        room_id = await alice.make_room(invite=False)
        await alice.put_state(room_id, WITNESS, ASKED)
        await (StickyCaller(alice, "js_43") if sticky else alice).call(room_id)
        await alice.invite(room_id)

        await until(lambda: in_call(alice, room_id), "the device joined the call")
        assert room_id in service.auditor.own.rooms


@pytest.mark.parametrize("how", ["room state", "command", "room removed"])
async def test_leaves_when_told(homeserver: Homeserver, pool: Pool, how: str) -> None:
    """A moderator or an operator ends its part of a call that goes on."""
    address, path, port = homeserver
    name = f"told-{how.replace(' ', '-')}"
    async with sender(address, name) as alice, running_service(pool, address, path, port) as service:
        room_id = await asked_into(service, alice)
        await alice.call(room_id)
        await until(lambda: in_call(alice, room_id), "the device joined the call")
        homeserver_id = service.intake.homeserver_id
        async with pool.acquire() as conn:
            if how == "room state":
                await alice.put_state(room_id, WITNESS, {"enabled": False})
            elif how == "command":
                await want_witness(conn, homeserver_id, room_id, witness=False)
            else:
                await want_room(conn, homeserver_id, room_id, wanted=False)
        await until(lambda: was_in_call(alice, room_id), "the device left the call")
        if how == "room removed":
            await until(lambda: room_id not in service.auditor.own.rooms, "the device left the room")

        assert (how != "room removed") is (room_id in service.auditor.own.rooms)


async def test_leaves_though_the_answer_to_its_join_was_lost(
    homeserver: Homeserver, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it joined it does not know then: it may be shown as a member, so it says that it is none."""

    async def lost(api: CallApi, room_id: RoomId, membership: OwnMembership, content: Any, **options: Any) -> Any:
        answer = await send(api, room_id, membership, content, **options)
        if content == membership.content:
            raise TimeoutError
        return answer

    send = CallApi.send
    monkeypatch.setattr(CallApi, "send", lost)
    address, path, port = homeserver
    async with sender(address, "lossy") as alice, running_service(pool, address, path, port) as service:
        room_id = await asked_into(service, alice)
        await alice.call(room_id)
        await until(lambda: in_call(alice, room_id), "the device joined the call")
        await alice.call(room_id, live=False)
        await until(lambda: was_in_call(alice, room_id), "the device left with the last")


async def test_its_leave_is_put_off_as_soon_as_it_has_joined(
    homeserver: Homeserver, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However shortly before it was: the homeserver may have taken the new membership for the end of the delay."""
    done: list[str] = []

    async def refused_at_first(
        api: CallApi, room_id: RoomId, membership: OwnMembership, content: Any, **options: Any
    ) -> Any:
        if content == membership.content:
            done.append("joined" if "put off" in done else "refused")
            if done[-1] == "refused":
                raise TimeoutError
        return await send(api, room_id, membership, content, **options)

    async def noted(api: CallApi, delay_id: str) -> None:
        done.append("put off")
        await put_off(api, delay_id)

    async def told(*_arguments: object) -> None:
        done.append("told")

    send, put_off = CallApi.send, CallApi.put_off
    monkeypatch.setattr(CallApi, "send", refused_at_first)
    monkeypatch.setattr(CallApi, "put_off", noted)
    address, path, port = homeserver
    async with (
        sender(address, "promised") as alice,
        running_service(pool, address, path, port, witness_notice="I take part.") as service,
    ):
        room_id = await asked_into(service, alice)
        monkeypatch.setattr(DeviceApi, "say", told)
        await alice.call(room_id)
        await until(lambda: "put off" in done, "the promise was renewed")
        # Another membership has the device look at the call again at once.
        place = ApiPath.v3.rooms[room_id].state[STATE_TYPE][f"_{alice.client.mxid}_{alice.client.device_id}_m.call"]
        content: Any = await alice.client.api.request(Method.GET, place)
        await alice.client.api.request(Method.PUT, place, {**content, "expires": content["expires"] + 1})
        await until(lambda: "told" in done, "the device joined the call")

    assert ["refused", "put off", "joined", "put off", "told"] == done[: done.index("told") + 1]


async def test_says_that_it_takes_part_though_that_failed_at_first(
    homeserver: Homeserver, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is watched unawares: what the homeserver did not take is said again, and once it is said, no more."""
    tried: list[str] = []

    async def refused_at_first(api: DeviceApi, room_id: RoomId, text: str, occasion: str) -> None:
        tried.append(text)
        if len(tried) == 1:
            raise TimeoutError
        await say(api, room_id, text, occasion)

    say = DeviceApi.say
    monkeypatch.setattr(DeviceApi, "say", refused_at_first)
    # It looks at the call again soon.
    monkeypatch.setattr("rtc_appservice.intake.witness.SIGN_OF_LIFE_SECONDS", 1.0)
    address, path, port = homeserver
    notice = "I take part."
    async with (
        sender(address, "told") as alice,
        running_service(pool, address, path, port, witness_notice=notice) as service,
    ):
        room_id = await asked_into(service, alice)
        await alice.call(room_id)
        await until(partial(said, alice, room_id, notice), "the room was told")
        await alice.call(room_id, live=False)
        await until(lambda: was_in_call(alice, room_id), "the device left with the last")
        found = await said(alice, room_id, notice)

    assert (1, [notice] * 2) == (found, tried)


async def said(caller: Sender, room_id: RoomId, text: str) -> int:
    """Count how often the device said something in a room."""
    path = ApiPath.v3.rooms[room_id].messages
    answer = await caller.client.api.request(Method.GET, path, query_params={"dir": "b", "limit": "200"})
    return sum(event["sender"] == BOT and event["content"].get("body") == text for event in answer["chunk"])


async def test_goes_when_it_is_put_out(homeserver: Homeserver, pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    """Kicked out of the room in the middle of a call, it is in no call, does not come back, and says nothing of it."""
    address, path, port = homeserver
    async with sender(address, "kicking") as alice, running_service(pool, address, path, port) as service:
        room_id, other = await asked_into(service, alice), await asked_into(service, alice)
        for one in (room_id, other):
            await alice.call(one)
            await until(partial(in_call, alice, one), "the device joined the call")
        await alice.client.api.request(Method.POST, ApiPath.v3.rooms[room_id].kick, {"user_id": BOT})
        await until(lambda: room_id not in service.auditor.own.rooms, "it was noted")
        await alice.call(other, live=False)
        await until(lambda: was_in_call(alice, other), "the device goes on with other rooms")
        found = await of_device(alice, room_id)
        rooms = await service.count("SELECT count(*) FROM crypto.room WHERE room_id = $1", room_id)

    assert [True] == [is_join(event) for event in found]
    assert 0 == rooms
    assert [] == warned(caplog)


async def allow(caller: Sender, room_id: RoomId, *, allowed: bool) -> None:
    """Let everybody send call memberships, or the room's creator alone."""
    path = ApiPath.v3.rooms[room_id].state["m.room.power_levels"]
    levels = await caller.client.api.request(Method.GET, path)
    levels["events"][STATE_TYPE] = 0 if allowed else 50
    await caller.put_state(room_id, "m.room.power_levels", levels)


async def test_says_once_that_a_room_forbids(
    homeserver: Homeserver, pool: Pool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where power levels forbid to join, and later to leave, it tries again now and then until they allow it."""
    monkeypatch.setattr("rtc_appservice.intake.witness.FORBIDDEN_SECONDS", FORBIDDEN_SECONDS)
    sent: list[bool] = []

    async def counted(*arguments: Any, **options: Any) -> str | None:
        sent.append("delay_ms" in options)
        return await send(*arguments, **options)

    send = CallApi.send
    monkeypatch.setattr(CallApi, "send", counted)
    address, path, port = homeserver
    async with sender(address, "strict") as alice, running_service(pool, address, path, port) as service:
        sealed = service.intake.sealed
        assert sealed is not None
        room_id = await asked_into(service, alice)
        await allow(alice, room_id, allowed=False)
        began = time.monotonic()
        await alice.call(room_id)
        await until(lambda: warned(caplog), "it was said")
        for count in range(5):
            await alice.call(room_id, live=False)
            await alice.call(room_id)
            await until(partial(recorded, service, room_id, 2 * count + 3), "all was recorded")
            await until(lambda: not sealed.calls_changed, "the device looked at the call")
        tried, lasted = list(sent), time.monotonic() - began
        await allow(alice, room_id, allowed=True)
        await until(lambda: in_call(alice, room_id), "the device joined once it could")
        await allow(alice, room_id, allowed=False)
        await alice.call(room_id, live=False)
        await until(lambda: len(warned(caplog)) > 1, "it was said")
        await allow(alice, room_id, allowed=True)
        await until(lambda: was_in_call(alice, room_id), "the device left once it could")

    assert len(tried) <= 2 * (1 + lasted / FORBIDDEN_SECONDS)
    assert [
        f"a room's power levels do not let the device send {STATE_TYPE}",
        "a room does not let the device leave its call; that ends by itself",
    ] == warned(caplog)


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Give what was logged as a warning or worse; no room may be named in it."""
    found = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not any("!" in str(value) for record in found for value in vars(record).values())
    return [record.getMessage() for record in found]


async def test_takes_no_part_where_its_leave_is_not_promised(
    tmp_path: Path, pool: Pool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A homeserver that delays no events (Synapse as it comes) could not end its membership: it says so, once."""

    def undelayed(*arguments: Any) -> dict[str, Any]:
        return {name: value for name, value in config(*arguments).items() if name != "max_event_delay_duration"}

    config = synapse.homeserver_config
    monkeypatch.setattr(synapse, "homeserver_config", undelayed)
    async with (
        sealed_synapse(tmp_path) as (address, path, port),
        sender(address, "plain") as alice,
        running_service(pool, address, path, port) as service,
    ):
        sealed = service.intake.sealed
        assert sealed is not None
        room_id = await asked_into(service, alice)
        await alice.call(room_id)
        await until(lambda: warned(caplog), "it was said")
        await alice.call(room_id, live=False)
        await alice.call(room_id)
        await until(lambda: recorded(service, room_id, 3), "all was recorded")
        await until(lambda: not sealed.calls_changed, "all was looked at")
        found = await of_device(alice, room_id)

    assert ["the homeserver delays no events (MSC4140): the device takes no part in calls"] == warned(caplog)
    assert [] == found
