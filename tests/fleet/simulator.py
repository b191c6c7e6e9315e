"""
Plays MatrixRTC calls without a network: clients of every generation, a homeserver, and the appservice's share of it.

Deterministic: equal seed and plan, equal recording. Written from the protocol alone and apart from the detector, so
that the two can be held against each other. `clients` has the rules by which keys are sent, `bodies` the wire forms,
`truth` the log of what happened, `plans` random calls, `expected` what a report should say of the log.

Times are milliseconds since the epoch. What is modelled: requests, sync and sealing take time, per client and event,
so that a key may outrun its membership; members that crash stay members until the homeserver sends their delayed
leave, the same `{}` as any other; every local user's sealed to-device messages reach the appservice but for those
Synapse drops; messages to other servers' users never do; transactions carry what is ready when the last is through.
"""

import base64
import hashlib
import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import bodies
from .clients import Client, LegacyClient, ModernClient
from .generations import GENERATIONS, Device
from .scheduler import Scheduler, Transaction
from .truth import MediaKey, RoomKeySent, Stint, Switch, ToDeviceSent, Truth

START = 1_795_000_000_000
Range = tuple[int, int]


@dataclass(frozen=True)
class Timing:
    """How long things take, in milliseconds, least and most."""

    request: Range = (10, 60)  #: from a client to the homeserver
    state: Range = (40, 160)  #: from there to another client: memberships
    timeline: Range = (50, 220)  #: the same for room keys, which wait for their decryption
    sealing: Range = (30, 120)  #: encrypting, and the request
    push: Range = (20, 120)  #: from the homeserver to the appservice
    #: Who sees a joiner's key before its membership, whatever the ranges say; None: the ranges decide.
    outrun_at: frozenset[Device] | None = None


class Simulator:
    """One room with its clients. Plan with `join`, `leave`, `crash`, `stray`; then `run`."""

    def __init__(
        self,
        seed: int,
        *,
        encrypted: bool = False,
        loss: float = 0.0,
        server: str = "sim.test",
        timing: Timing | None = None,
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - no secrets here
        self.timing = timing or Timing()
        self.loss = loss
        self.now = START
        self.clients: dict[Device, Client] = {}
        self.truth = Truth("!" + self._name(43), server, encrypted)
        self._labels: dict[Device, str] = {}
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._scheduler = Scheduler(self.random, server)
        self._seen_at: dict[Device, int] = {}
        self._last_ts = 0
        self._last_event_id = ""
        self._state: dict[str, dict[str, Any]] = {}
        self._counter = 0
        self._member_ids: dict[int, str] = {}
        self._olm_open: set[tuple[Device, Device]] = set()  #: (sender, recipient): a message has gone this way
        self._megolm: dict[Device, int] = {}
        self._cross_signed: dict[str, bool] = {}

    # --- the plan ------------------------------------------------------------------------------

    def add(self, device: Device, label: str, *, host_fails_at: int | None = None) -> None:
        """Add a client of a generation; `host_fails_at` counts from the start."""
        generation = GENERATIONS[label]
        kind = ModernClient if generation.modern else LegacyClient
        fails_at = None if host_fails_at is None else START + host_fails_at
        self.clients[device] = kind(self, device, generation, fails_at)
        self._labels[device] = label
        self._cross_signed.setdefault(device[0], self.random.random() < 0.5)

    def join(self, at: int, device: Device) -> None:
        """Let a client join; `at` counts from the start here and below."""
        self._plan(at, lambda: self._join(device))

    def leave(self, at: int, device: Device, *, linger: bool = True) -> None:
        """Let a client leave; its process goes on if it lingers."""
        self._plan(at, lambda: self._leave(device, linger))

    def crash(self, at: int, device: Device, *, leave_after: int = 8_000) -> None:
        """Let a client's process end; the homeserver sends its leave when its keep-alive has run out."""
        self._plan(at, lambda: self._crash(device, leave_after))

    def stray(self, at: int, device: Device, *, padded: bool = False) -> None:
        """Let a device that is in no call send a room key."""
        self._plan(at, lambda: self._stray(device, padded))

    def run(self, until: int) -> list[Transaction]:
        """Play to the end and give the transactions; `truth` then holds what happened."""
        self._create_room()
        while self._queue and self._queue[0][0] <= START + until:
            self.now, _, action = heapq.heappop(self._queue)
            action()
        self.now = START + until
        self._emit("m.room.message", self._creator(), {"msgtype": "m.text", "body": "x"}, room_id="!" + self._name(43))
        transactions = self._scheduler.transactions()
        self.truth.ended_at = transactions[-1].received_at
        return transactions

    # --- what clients ask for (clients.World) --------------------------------------------------

    def later(self, delay_ms: int, action: Callable[[], None]) -> None:
        """Do something after a while."""
        self._counter += 1
        heapq.heappush(self._queue, (self.now + delay_ms, self._counter, action))

    def new_key(self, *, padded: bool) -> MediaKey:
        """Give a random media key of 16 bytes."""
        raw = self.random.randbytes(16)
        text = base64.b64encode(raw).decode()
        return MediaKey(hashlib.sha256(raw).hexdigest()[:12], text if padded else text.rstrip("="))

    def sealing_ms(self) -> int:
        """Give how long encrypting and the request to the homeserver take."""
        return self.random.randint(*self.timing.sealing)

    def send_room_key(self, client: Client, keys: list[tuple[int, MediaKey]]) -> None:
        """Put a room key event on its way."""
        stint, after_leave = client.stint, not client.joined
        delay = self.random.randint(*self.timing.request)
        if self.truth.encrypted:
            delay += 60 + self.sealing_ms()
        sent_ts = self.now if client.generation.sent_ts else None
        content = bodies.room_key(client.device, [(index, key.text) for index, key in keys], sent_ts)
        marks = [(index, key.key_id) for index, key in keys]
        self.later(delay, lambda: self._post_room_key(client.device, stint, content, marks, after_leave))

    def send_to_device(self, client: Client, index: int, key: MediaKey, recipients: list[Device]) -> None:
        """Put a to-device key for each recipient on its way; for nobody, nothing is sent."""
        stint, after_leave, generation = client.stint, not client.joined, client.generation
        assert stint is not None
        content = bodies.to_device_key(
            self.truth.room_id,
            client.device,
            index,
            key.text,
            self.now if generation.to_device_sent_ts else None,
            self._member_ids[id(stint)] if generation.member_id else None,
        )
        self._counter += 1
        act = self._counter

        def arrive() -> None:
            for recipient in recipients:
                message = ToDeviceSent(
                    f"m{self._next():012x}",
                    self.now,
                    client.device,
                    recipient,
                    stint,
                    index,
                    key.key_id,
                    after_leave,
                    act,
                )
                self._seal_olm(message, bodies.KEY_TYPE, content)

        if recipients:
            self.later(self.sealing_ms(), arrive)

    def note_switch(self, client: Client, trigger: str | None, trigger_device: Device | None) -> None:
        """Take down that a client left to-device, and why."""
        assert client.stint is not None
        self.truth.switches.append(Switch(self.now, client.device, client.stint, trigger, trigger_device))

    # --- what happens --------------------------------------------------------------------------

    def _plan(self, at: int, action: Callable[[], None]) -> None:
        self._counter += 1
        heapq.heappush(self._queue, (START + at, self._counter, action))

    def _join(self, device: Device) -> None:
        client = self.clients[device]
        assert not client.joined
        stint = Stint(device, self._labels[device])
        self._member_ids[id(stint)] = f"{self.random.getrandbits(128):032x}xxxx"  # as long as a UUID
        client.join(stint)

        def arrive() -> None:
            content = bodies.membership(self.truth.room_id, device, client.generation)
            stint.joined_at = self._emit(bodies.MEMBER_TYPE, device[0], content, self._state_key(device))
            self.truth.stints.append(stint)
            self._tell_membership(device, stint.joined_at)

        self.later(self.random.randint(*self.timing.request), arrive)

    def _leave(self, device: Device, linger: bool) -> None:
        client = self.clients[device]
        assert client.joined and client.stint is not None
        client.leave(linger=linger)
        self._end(client.stint, self.random.randint(*self.timing.request))

    def _crash(self, device: Device, leave_after: int) -> None:
        client = self.clients[device]
        assert client.joined and client.stint is not None
        client.stint.crashed_at = self.now
        client.crash()
        self._end(client.stint, leave_after)

    def _end(self, stint: Stint, delay_ms: int) -> None:
        def arrive() -> None:
            stint.left_at = self._emit(bodies.MEMBER_TYPE, stint.device[0], {}, self._state_key(stint.device))
            self._tell_membership(stint.device, None)

        self.later(delay_ms, arrive)

    def _stray(self, device: Device, padded: bool) -> None:
        key = self.new_key(padded=padded)
        content = bodies.room_key(device, [(0, key.text)], self.now)
        self._post_room_key(device, None, content, [(0, key.key_id)], after_leave=False)

    def _post_room_key(
        self,
        device: Device,
        stint: Stint | None,
        content: dict[str, Any],
        keys: list[tuple[int, str]],
        after_leave: bool,
    ) -> None:
        if self.truth.encrypted:
            self._share_megolm(device, stint, after_leave)
            message_index = self._megolm[device] = self._megolm[device] + 1
            length = bodies.megolm_length(self.truth.room_id, bodies.KEY_TYPE, content, message_index)
            sealed = {
                "algorithm": "m.megolm.v1.aes-sha2",
                "ciphertext": self._ciphertext(length),
                "device_id": device[1],
                "sender_key": self._olm_key(device),
                "session_id": self._olm_key((device[0], device[1] + "megolm")),
            }
            at = self._emit("m.room.encrypted", device[0], sealed)
        else:
            at = self._emit(bodies.KEY_TYPE, device[0], content)
        event_id = self._last_event_id
        self.truth.room_keys.append(RoomKeySent(event_id, at, device, stint, after_leave, keys))
        for client in self.clients.values():
            delay = self.random.randint(*self.timing.timeline)
            if self.timing.outrun_at is not None:
                delay = 10 if client.device in self.timing.outrun_at else self.timing.state[1] + 60
            self.later(delay, lambda client=client: client.see_room_key(device, event_id))  # type: ignore[misc]

    def _share_megolm(self, device: Device, stint: Stint | None, after_leave: bool) -> None:
        if device in self._megolm:
            return
        self._megolm[device] = -1
        content = bodies.megolm_share(self.truth.room_id)
        for recipient in self.clients:
            if recipient != device and stint is not None:
                message = ToDeviceSent(
                    f"m{self._next():012x}", self.now, device, recipient, stint, 0, None, after_leave, 0
                )
                self._seal_olm(message, "m.room_key", content)

    def _tell_membership(self, device: Device, since: int | None) -> None:
        for client in self.clients.values():
            at = self.now + self.random.randint(*self.timing.state)
            at = self._seen_at[client.device] = max(at, self._seen_at.get(client.device, 0))
            self.later(at - self.now, lambda client=client: client.see_membership(device, since))  # type: ignore[misc]

    # --- the homeserver ------------------------------------------------------------------------

    def _create_room(self) -> None:
        self._last_ts = START - 10_000
        creator = self._creator()
        now, self.now = self.now, START - 5_000
        self._emit("m.room.create", creator, {"room_version": "12"}, "")
        self._emit("m.room.member", creator, {"membership": "join", "displayname": "c"}, creator)
        self._emit("m.room.history_visibility", creator, {"history_visibility": "shared"}, "")
        if self.truth.encrypted:
            self._emit("m.room.encryption", creator, {"algorithm": "m.megolm.v1.aes-sha2"}, "")
        self.now = now

    def _creator(self) -> str:
        return f"@creator:{self.truth.server}"

    def _emit(
        self,
        kind: str,
        sender: str,
        content: dict[str, Any],
        state_key: str | None = None,
        *,
        room_id: str | None = None,
    ) -> int:
        at = self._last_ts = max(self.now, self._last_ts + 1)
        entry = bodies.event(kind, room_id or self.truth.room_id, "$" + self._name(43), sender, at, content)
        if state_key is not None:
            entry["state_key"] = state_key
            before = self._state.get(kind + state_key)
            if before is not None:
                entry["prev_content"] = before["content"]
                entry["replaces_state"] = before["event_id"]
            self._state[kind + state_key] = entry
        self._last_event_id = entry["event_id"]
        self._scheduler.push_event(at + self.random.randint(*self.timing.push), entry)
        return at

    def _seal_olm(self, message: ToDeviceSent, kind: str, content: dict[str, Any]) -> None:
        pair = (message.sender, message.recipient)
        opening = (message.recipient, message.sender) not in self._olm_open
        self._olm_open.add(pair)
        self.truth.to_device.append(message)
        lost = self.random.random() < self.loss
        if lost or not message.recipient[0].endswith(":" + self.truth.server):
            return
        length = bodies.olm_body_length(
            kind,
            content,
            message.sender,
            message.recipient[0],
            opening=opening,
            cross_signed=self._cross_signed.get(message.sender[0], False),
        )
        entry = bodies.olm_message(
            message.sender[0],
            self._olm_key(message.sender),
            message.recipient,
            self._ciphertext(length),
            message.message_id,
            opening=opening,
        )
        self._scheduler.push_message(self.now + self.random.randint(*self.timing.push), entry, message)

    # --- names ---------------------------------------------------------------------------------

    def _state_key(self, device: Device) -> str:
        return bodies.state_key(device, self.clients[device].generation)

    def _next(self) -> int:
        self._counter += 1
        return self._counter

    def _name(self, length: int) -> str:
        return base64.urlsafe_b64encode(self.random.randbytes(length)).decode()[:length]

    def _olm_key(self, device: Device) -> str:
        return base64.b64encode(hashlib.sha256(repr(device).encode()).digest()).decode().rstrip("=")

    def _ciphertext(self, length: int) -> str:
        return f"{self._next():012d}".ljust(length, "A")
