"""
Three short calls, and what a report must say of them by the players' own logs.

Nothing expected is typed in: `expected` reads it from what the players noted, `compare` holds a report against it.
To-device deliveries alone are not compared exactly, since Synapse loses some to-device messages on the way to
application services when several are stored at the same moment.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from mautrix.types import RoomCreatePreset
from msgspec import Struct

from rtc_appservice.core.model import CallReport, Report
from rtc_appservice.core.words import Device, FallbackCause, KeyTransport, RoomId, Verdict
from rtc_appservice.demo import wire
from rtc_appservice.demo.players import Player, PlayLog, logged_in
from rtc_appservice.demo.wire import Generation


class Role(Struct, frozen=True):
    """A part in a play: one device of one user."""

    localpart: str
    device_id: str
    generation: Generation


class Play(Struct, frozen=True, kw_only=True):
    """One call: the parts join in order, and leave in the order of `exits`."""

    title: str
    cast: tuple[Role, ...]
    exits: tuple[str, ...]
    join_seconds: float = 1.2  #: between two joins
    leave_seconds: float = 0.6  #: between two leaves
    liar: str | None = None  #: who sends one key otherwise than it notes


#: Each call has users of its own: an Olm envelope names the user that sent it, not the device.
PLAYS = (
    Play(
        title="all keys by to-device",
        cast=(
            Role("alice", "ALICE1", Generation.MODERN),
            Role("bob", "BOB1", Generation.SMART),
            Role("carol", "CAROL1", Generation.MODERN),
        ),
        exits=("alice", "bob", "carol"),
    ),
    Play(
        title="a room-only client makes the others follow",
        cast=(
            Role("dave", "DAVE1", Generation.SMART),
            Role("erin", "ERIN1", Generation.SMART),
            Role("frank", "FRANK1", Generation.ROOM_ONLY),
        ),
        exits=("frank", "dave", "erin"),
    ),
    Play(
        title="a generation that knows room events only",
        cast=(
            Role("grace", "GRACE1", Generation.ROOM_ONLY),
            Role("heidi", "HEIDI1", Generation.ROOM_ONLY),
            Role("ivan", "IVAN1", Generation.ROOM_ONLY),
        ),
        exits=("grace", "heidi", "ivan"),
        join_seconds=3.1,  # the legacy manager sends a key again after 3 s at the earliest
    ),
)


def broken(plays: Sequence[Play]) -> tuple[Play, ...]:
    """Give the same plays with one player who does not do what it notes: a comparison must find it."""
    first, *others = plays
    return (Play(title=first.title, cast=first.cast, exits=first.exits, liar=first.cast[0].localpart), *others)


@contextlib.asynccontextmanager
async def gathered(address: str, play: Play) -> AsyncIterator[dict[str, Player]]:
    """Log the cast of a play in on the homeserver at `address`, and keep its `/sync` running."""
    async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        players = {
            role.localpart: await stack.enter_async_context(
                logged_in(address, role.localpart, role.device_id, role.generation, lies=role.localpart == play.liar)
            )
            for role in play.cast
        }
        running = [tasks.create_task(player.run()) for player in players.values()]
        try:
            yield players
        finally:
            for task in running:
                task.cancel()


async def perform(address: str, play: Play, tell: Callable[[str], None]) -> PlayLog:
    """Play one call on the homeserver at `address`, saying what happens, and give the players' log."""
    async with gathered(address, play) as players:
        cast = list(players.values())
        room_id = await _open_room(cast, play.title)
        log = PlayLog(title=play.title, room_id=room_id)
        for player in cast:
            await player.join_room(log)
        for name, player in players.items():
            await player.join_call()
            await asyncio.gather(*(other.sees(player.device, present=True) for other in cast))
            tell(f"{name} ({player.generation}) joined")
            await asyncio.sleep(play.join_seconds)
        for name in play.exits:
            await players[name].leave_call()
            await asyncio.gather(*(other.sees(players[name].device, present=False) for other in cast))
            tell(f"{name} left")
            await asyncio.sleep(play.leave_seconds)
        return log


async def _open_room(cast: Sequence[Player], title: str) -> RoomId:
    owner, *others = cast
    room_id = await owner.client.create_room(
        name=title,
        preset=RoomCreatePreset.PRIVATE,
        invitees=[player.client.mxid for player in others],
        power_level_override={"events": {wire.MEMBER_TYPE: 0}},
    )
    return RoomId(room_id)


class Expected(Struct, frozen=True, kw_only=True):
    """What the report must say of one call."""

    verdict: Verdict
    participants: frozenset[Device]
    room_keys: int
    #: Each device that sent a room key, with the cause and, for one that followed, whose key it followed.
    fallbacks: frozenset[tuple[Device, FallbackCause, Device | None]]
    #: Messages sent by to-device: at least one must be found, and not more than these.
    to_device_messages: int


def expected(log: PlayLog) -> Expected:
    """Give what a report must say of a call, from what its players noted."""
    first_room_keys = {
        sent.sender: sent for sent in reversed(log.sent) if sent.key_transport is KeyTransport.ROOM_EVENT
    }
    transports = {sent.key_transport for sent in log.sent}
    if transports == {KeyTransport.TO_DEVICE}:
        verdict = Verdict.TO_DEVICE
    elif transports == {KeyTransport.ROOM_EVENT}:
        verdict = Verdict.ROOM_EVENT
    else:
        verdict = Verdict.MIXED
    return Expected(
        verdict=verdict,
        participants=frozenset(log.generations),
        room_keys=sum(sent.key_transport is KeyTransport.ROOM_EVENT for sent in log.sent),
        fallbacks=frozenset(
            (device, FallbackCause.FOLLOWED if sent.followed else FallbackCause.ROOM_ONLY_CLIENT, sent.followed)
            for device, sent in first_room_keys.items()
        ),
        to_device_messages=sum(len(s.recipients) for s in log.sent if s.key_transport is KeyTransport.TO_DEVICE),
    )


def compare(report: Report, logs: Sequence[PlayLog]) -> list[str]:
    """Give, in words, all in which a report differs from what the players noted; nothing if it agrees."""
    titles = {log.room_id: log.title for log in logs}
    differences = [
        f"a call in {call.room_id}, where nobody played" for call in report.calls if call.room_id not in titles
    ]
    for log in logs:
        calls = [call for call in report.calls if call.room_id == log.room_id]
        if len(calls) == 1:
            differences += [f"{log.title}: {text}" for text in _compare_call(calls[0], expected(log))]
        else:
            differences.append(f"{log.title}: one call was played, {len(calls)} are reported")
    in_history = sum(expected(log).room_keys for log in logs)
    if report.totals.room_keys_in_history != in_history:
        differences.append(f"{in_history} room keys were sent, {report.totals.room_keys_in_history} are in the history")
    return differences


def _compare_call(call: CallReport, wanted: Expected) -> list[str]:
    found: list[tuple[str, Any, Any]] = [
        ("verdict", wanted.verdict, call.verdict),
        ("participants", wanted.participants, frozenset((p.user_id, p.device_id) for p in call.participants)),
        ("room keys", wanted.room_keys, call.distributions.room_event),
        ("fallbacks", wanted.fallbacks, frozenset(
            ((f.user_id, f.device_id), f.cause, (f.caused_by.user_id, f.caused_by.device_id) if f.caused_by else None)
            for f in call.fallbacks
        )),
        ("a fallback for each device", len(wanted.fallbacks), len(call.fallbacks)),
    ]  # fmt: skip
    differences = [f"{what} {_words(want)} played, {_words(got)} reported" for what, want, got in found if want != got]
    sent, seen = wanted.to_device_messages, call.deliveries.to_device
    if seen > sent or (sent > 0 and seen == 0):
        differences.append(f"{sent} to-device messages sent, {seen} deliveries reported")
    return differences


def _words(value: Any) -> str:
    if isinstance(value, frozenset):
        return "{" + "; ".join(sorted(_words(item) for item in value)) + "}"
    if isinstance(value, tuple):
        return " ".join(_words(item) for item in value if item is not None)
    return str(value)
