"""Notices in the operator's room, on a real Synapse, posted by the service as an operator runs it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from mautrix.api import Method
from mautrix.api import Path as ApiPath
from mautrix.errors import MForbidden
from mautrix.types import (
    EncryptionAlgorithm,
    EventType,
    RoomCreatePreset,
    RoomEncryptionStateEventContent,
    RoomID,
    UserID,
)

from rtc_appservice import registration
from rtc_appservice.core.notices import Notice
from rtc_appservice.core.words import RoomId, UserId
from rtc_appservice.demo import wire
from rtc_appservice.demo.players import Player, PlayLog
from rtc_appservice.demo.plays import Play, Role, gathered
from rtc_appservice.demo.process import ServerProcess, running
from rtc_appservice.demo.stage import DETECTION
from rtc_appservice.demo.synapse import SERVER_NAME, Synapse, free_port, running_synapse
from rtc_appservice.demo.wire import Generation
from rtc_appservice.intake.notifications import RoomEncrypted, posting, run_notifications
from rtc_appservice.intake.own_users import OwnUsersOnly
from rtc_appservice.store.pool import Pool

PATIENCE_SECONDS = 60.0
CAST = Play(
    title="a call that splits",
    cast=(Role("amy", "AMY1", Generation.MODERN), Role("ron", "RON1", Generation.ROOM_ONLY)),
    exits=("amy", "ron"),
)
ENCRYPTION = RoomEncryptionStateEventContent(algorithm=EncryptionAlgorithm.MEGOLM_V1)


class Installation:
    """A Synapse with its registration, and what the service is started with."""

    def __init__(self, folder: Path, synapse: Synapse, dsn: str, port: int) -> None:
        self.folder, self.synapse, self._dsn, self._port = folder, synapse, dsn, port
        self.registered = registration.load(folder / "registration.yaml")
        self.sender = UserId(f"@{self.registered.sender_localpart}:{SERVER_NAME}")

    @asynccontextmanager
    async def service(self, room_id: str) -> AsyncIterator[ServerProcess]:
        """Run the service until the block ends."""
        admin_port = free_port()
        config = {
            "secret": "a secret of the test",
            "homeserver": {"address": self.synapse.address, "domain": SERVER_NAME},
            "appservice": {"port": self._port, "registration": "registration.yaml"},
            "database": {"url": self._dsn, "pool_size": 3},
            "metrics": {"listen_port": admin_port},
            "detection": DETECTION,
            "notifications": {"room_id": room_id, "weekly": True},
        }
        (self.folder / "config.yaml").write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "rtc_appservice", "run", "--config", "config.yaml"]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RTC_APPSERVICE_")}
        ready = f"http://127.0.0.1:{admin_port}/ready"
        async with running(
            "rtc-appservice", command, folder=self.folder, ready_url=ready, environment=clean
        ) as process:
            yield process


@pytest.fixture
async def installation(tmp_path: Path, database: str) -> AsyncIterator[Installation]:
    """Give a Synapse that sends the service what it sends to an appservice."""
    port = free_port()
    path = tmp_path / "registration.yaml"
    path.write_text(registration.render(registration.Scope.USERS, domain=SERVER_NAME, url=f"http://127.0.0.1:{port}"))
    async with running_synapse(path) as synapse:
        yield Installation(tmp_path, synapse, database, port)


@pytest.fixture
async def session(installation: Installation) -> AsyncIterator[aiohttp.ClientSession]:
    """Give a session that lets requests out as the registration's sender only."""
    async with aiohttp.ClientSession(middlewares=(OwnUsersOnly({installation.sender}),)) as session:
        yield session


async def operators_room(player: Player, installation: Installation) -> RoomID:
    """Open a room and invite the service's user."""
    return await player.client.create_room(preset=RoomCreatePreset.PRIVATE, invitees=[UserID(installation.sender)])


async def said(player: Player, room_id: RoomID) -> list[str]:
    """Give the notices in a room, the oldest first."""
    found = await player.client.api.request(
        Method.GET, ApiPath.v3.rooms[room_id].messages, query_params={"dir": "b", "limit": "100"}
    )
    contents = [event["content"] for event in found["chunk"] if event["type"] == "m.room.message"]
    return [content["body"] for content in reversed(contents) if content["msgtype"] == "m.notice"]


async def call_begins(players: dict[str, Player]) -> RoomID:
    """Have a player who knows to-device only and one who knows room events only join a call."""
    amy, ron = players["amy"], players["ron"]
    room_id = await amy.client.create_room(
        preset=RoomCreatePreset.PRIVATE,
        invitees=[ron.client.mxid],
        power_level_override={"events": {wire.MEMBER_TYPE: 0}},
    )
    log = PlayLog(title=CAST.title, room_id=RoomId(room_id))
    for player in (amy, ron):
        await player.join_room(log)
    for player in (amy, ron):
        await player.join_call()
        await asyncio.gather(*(other.sees(player.device, present=True) for other in (amy, ron)))
    return room_id


async def test_a_split_call_and_the_week_are_told_once(installation: Installation, pool: Pool) -> None:
    """
    A split is posted while the call goes on, the week beside it; a restart posts neither again.

    The split is remembered. Of the week the memory is taken away, as by a crash right after the post: it is sent again,
    and the homeserver knows it.
    """
    async with gathered(installation.synapse.address, CAST) as players:
        amy = players["amy"]
        room_id = await operators_room(amy, installation)
        async with installation.service(room_id), asyncio.timeout(PATIENCE_SECONDS):
            call_room = await call_begins(players)
            while await pool.fetchval("SELECT count(*) FROM notice") < 2:
                # Time passes for the service as events come.
                await amy.client.send_text(call_room, "still here")
                await asyncio.sleep(0.5)
        first = await said(amy, room_id)
        await pool.execute("DELETE FROM notice WHERE notice_id LIKE 'weekly/%'")
        async with installation.service(room_id), asyncio.timeout(PATIENCE_SECONDS):
            while await pool.fetchval("SELECT count(*) FROM notice") < 2:
                await asyncio.sleep(0.1)
        second = await said(amy, room_id)

    splits = [text for text in first if text.startswith(f"Split call in {call_room} since ")]
    weeks = [text for text in first if text.startswith("Week ")]
    assert (1, 1, 2) == (len(splits), len(weeks), len(first))
    assert all(player.device[0] in splits[0] for player in players.values())
    assert first == second


async def test_a_room_it_cannot_post_to(installation: Installation, pool: Pool, session: aiohttp.ClientSession) -> None:
    """Uninvited it fails, once invited it posts; in an encrypted room it says nothing in clear, and gives up."""
    homeserver_id = await pool.fetchval(
        "INSERT INTO homeserver (name) VALUES ($1) RETURNING homeserver_id", SERVER_NAME
    )
    server = (installation.synapse.address, installation.registered.as_token, session, installation.sender)
    notice = Notice(notice_id="weekly/1", text="Hello.")
    async with gathered(installation.synapse.address, CAST) as players:
        amy = players["amy"]
        room_id = await amy.client.create_room(preset=RoomCreatePreset.PRIVATE)
        post = posting(*server, room_id)
        with pytest.raises(MForbidden):
            await post(notice)
        await amy.client.invite_user(room_id, UserID(installation.sender))
        await post(notice)
        await amy.client.send_state_event(room_id, EventType.ROOM_ENCRYPTION, ENCRYPTION)
        with pytest.raises(RoomEncrypted):
            await post(Notice(notice_id="weekly/2", text="Secret."))
        async with asyncio.timeout(PATIENCE_SECONDS):
            await run_notifications(pool, homeserver_id, post, asyncio.Event(), weekly_target=0.99)

        assert ["Hello."] == await said(amy, room_id)
        assert 0 == await pool.fetchval("SELECT count(*) FROM notice")
