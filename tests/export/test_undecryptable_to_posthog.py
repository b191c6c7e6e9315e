"""What the service's device could not open in a call, all the way from the wire to PostHog and the metrics page."""

from datetime import timedelta
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # an independent reading of our schemas
import pytest
from olm.group_session import OutboundGroupSession

from rtc_appservice.core.words import Coverage
from rtc_appservice.demo.posthog_standin import PostHogStandIn
from rtc_appservice.export.events import Terms, event_maker
from rtc_appservice.export.posthog import Sender, poster
from rtc_appservice.export.prometheus import Metrics
from rtc_appservice.export.pseudonym import Pseudonyms
from rtc_appservice.projector import Projector, project_once, replay
from rtc_appservice.store import sessions, streams
from rtc_appservice.store.pool import Pool

from ..intake.olm_peer import OURS, ROOM, Peer, body
from ..intake.reading_device import SECRET, ReadingDevice
from ..intake.serving import HOMESERVER, Clock, Events
from .test_calls_to_posthog import standin  # noqa: F401 - a fixture
from .test_events import schema
from .test_prometheus import samples

TERMS = Terms(secret=SECRET, app_version="1.2.3")
ALICE, BOB = ("@alice:lab.test", "ALICE1"), ("@bob:lab.test", "BOB1")


class Call:
    """A call in an encrypted room, with the service's device in room and call."""

    def __init__(self, pool: Pool) -> None:
        """Take the database."""
        self.clock = Clock()
        self.device = ReadingDevice(pool, self.clock)
        self.events = Events(self.clock)
        self.pool = pool

    async def begin(self) -> None:
        """Let everybody join."""
        await self.device.start()
        self.projector = Projector(
            homeserver=HOMESERVER,
            homeserver_id=self.device.intake.homeserver_id,
            envelopes=True,
            events=event_maker(TERMS),
        )
        await self.device.take(body(events=tuple(self.membership(*who) for who in (ALICE, BOB, OURS))))

    def membership(self, user_id: str, device_id: str, *, live: bool = True) -> dict[str, Any]:
        """Give a membership event."""
        event = self.events.join(room_id=ROOM, sender=user_id, state_key=f"_{user_id}_{device_id}")
        event["content"] = {**event["content"], "device_id": device_id} if live else {}
        return event

    def sealed(self, event: dict[str, Any]) -> dict[str, Any]:
        """Give a sealed event as sent now."""
        self.clock.advance(1)
        return {**event, "origin_server_ts": int(self.clock().timestamp() * 1000)}

    async def settle(self) -> None:
        """Let everybody leave, and all deadlines pass."""
        self.clock.advance(1)
        left = tuple(self.membership(*who, live=False) for who in (ALICE, BOB, OURS))
        await self.device.take(body(events=left))
        for _ in range(4):
            await self.project(60)

    async def project(self, seconds: float) -> None:
        """Let time pass, and project until nothing is left to do."""
        now = self.clock.advance(seconds)
        async with self.pool.acquire() as conn:
            await streams.heartbeat(conn, self.projector.homeserver_id, now, now)
        while await project_once(self.pool, self.projector, now):
            pass


def alike(alice: Peer, event: dict[str, Any]) -> dict[str, Any]:
    """Give a sealed event of no interest that is as long as another."""
    made = (alice.event(104, "m.reaction", {"x": "y" * length}) for length in range(200))
    return next(one for one in made if len(one["content"]["ciphertext"]) == len(event["content"]["ciphertext"]))


@pytest.fixture
async def call(pool: Pool) -> Call:
    """Give a call that goes on."""
    call = Call(pool)
    await call.begin()
    return call


async def page(pool: Pool) -> dict[Any, float]:
    """Give the totals of a metrics page, as a process that has just started shows it."""
    text, _ = await Metrics(pool, [HOMESERVER], "1.2.3").page("text/plain")
    return {key: value for key, value in samples(text.decode()).items() if "decrypt" in key[0] or "withheld" in key[0]}


async def test_each_key_that_could_not_be_opened_is_told(
    pool: Pool,
    call: Call,
    standin: PostHogStandIn,  # noqa: F811 - the fixture
) -> None:
    """One that never could, one that could later and one by to-device; no message, and nothing that was no key."""
    alice, device = call.device.alice, call.device
    never = call.sealed(alice.room_key(101))
    message = call.sealed(alice.event(102, "m.room.message", {"msgtype": "m.text", "body": "x" * 50}))
    addresses = {"sender": alice.user, "to_user_id": OURS[0], "to_device_id": OURS[1]}
    content = {"room_id": ROOM, "session_id": alice.megolm.id, "code": "m.unverified"}
    withheld = {"type": "m.room_key.withheld", "content": content, **addresses}
    await device.take(body(withheld, events=(never, message)))
    alice.megolm = OutboundGroupSession()
    session = alice.megolm_key()
    later = call.sealed(alice.room_key(103))
    no_key = call.sealed(alike(alice, later))
    await device.take(body(events=(later, no_key)))
    call.clock.advance(3)
    at_once = call.sealed(alice.room_key(105))
    await device.take(body(session, events=(at_once,)))
    await device.read_again(later, no_key)
    by_olm = alice.media_key()
    ciphertext = next(iter(by_olm["content"]["ciphertext"].values()))
    ciphertext["body"] = ciphertext["body"][:-4] + "AAAA"
    await call.project(1)
    await device.take(body(by_olm))
    await call.settle()
    await Sender(pool, poster("phc_test", standin.address), chance=lambda: 0.0).send_due(call.clock())

    sent = [event["properties"] for event in standin.events if event["event"] == "RtcKeyUndecryptable"]
    names = ("keyTransport", "reason", "withheldCode", "wasOpenedLater", "openedAfterSeconds", "evidence")
    assert [
        ("room_event", "withheld", "m.unverified", False, None, "inferred"),
        ("room_event", "missing_session", None, True, 5.0, "decrypted"),
        ("to_device", "olm_failed", None, False, None, "inferred"),
    ] == [tuple(each[name] for name in names) for each in sent]
    assert {Pseudonyms(SECRET).device(*ALICE)} == {each["device"] for each in sent}
    for each in sent:
        jsonschema.Draft202012Validator(schema("RtcKeyUndecryptable")).validate(each)
    (ended,) = (event["properties"] for event in standin.events if event["event"] == "RtcCallEnded")
    assert 3 == ended["keysUndecryptable"]
    assert "timeline_partial" in ended["coverage"]


async def test_neither_a_restart_nor_a_replay_changes_a_total(pool: Pool, call: Call) -> None:
    """What the metrics page shows is the same after both, and nothing is sent twice."""
    alice = call.device.alice
    session = alice.megolm_key()
    await call.device.take(body(events=(call.sealed(alice.room_key(101)),)))
    await call.device.take(body(session, events=(call.sealed(alice.room_key(102)),)))
    await call.settle()
    before = await page(pool)
    async with pool.acquire() as conn:
        queued = await conn.fetchval("SELECT count(*) FROM outbox")

    await call.device.start()
    await replay(pool, call.projector, call.clock() + timedelta(days=8))

    assert before == await page(pool)
    assert {1.0} == {value for value in before.values() if value}
    assert {
        ("rtc_appservice_keys_undecryptable_total", "missing_session"),
        ("rtc_appservice_events_undecryptable_total", "missing_session"),
    } == {(name, dict(labels)["reason"]) for (name, labels), value in before.items() if value and "un" in name}
    async with pool.acquire() as conn:
        assert queued == await conn.fetchval("SELECT count(*) FROM outbox")
        (found,) = await sessions.load_calls(conn)
    assert Coverage.TIMELINE_PARTIAL in found.coverage


async def test_without_a_device_nothing_is_told(pool: Pool, call: Call, standin: PostHogStandIn) -> None:  # noqa: F811
    """A room that nobody of ours reads has sealed events too; that they stay so is no event."""
    call.device.intake.sealed = None
    await call.device.take(body(events=(call.sealed(call.device.alice.room_key(101)),)))
    await call.settle()
    await Sender(pool, poster("phc_test", standin.address), chance=lambda: 0.0).send_due(call.clock())

    names = [event["event"] for event in standin.events]
    (ended,) = (event["properties"] for event in standin.events if event["event"] == "RtcCallEnded")
    assert "RtcKeyUndecryptable" not in names
    assert (0, 1) == (ended["keysUndecryptable"], ended["distributionsRoomEvent"])
