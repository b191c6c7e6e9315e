"""Random calls: who takes part, of which generation, and when they come, go, crash and come back."""

import random
from dataclasses import dataclass, field

from .generations import Device
from .scheduler import Transaction
from .simulator import Simulator

#: Generations that meet in a call, with weights: mostly as in the wild, where a few kinds meet.
_MIXES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (3, ("D2",)),
    (2, ("D1", "D1b", "D2")),
    (3, ("S3",)),
    (2, ("S1", "S2", "S3")),
    (2, ("S1", "S2", "S3", "D1", "D2")),
    (2, ("R1",)),
    (1, ("R0", "R1", "D1off")),
    (4, ("S3", "S3", "S3", "R1")),
    (3, ("S1", "S2", "S3", "R0", "R1")),
    (3, ("D2", "D2", "D1b", "R1", "D1off")),
    (4, ("D2", "S3", "S1", "R1")),
    (3, ("R0", "R1", "S1", "S2", "S3", "D1", "D1b", "D1off", "D2")),
)
_APART_MS = 12_000  #: in smooth rooms a device stays away longer than a key can be taken for its next stint's
TAIL_MS = 200_000  #: after the last action: all deadlines pass


@dataclass
class Played:
    """A played call with all that made it."""

    seed: int
    simulator: Simulator
    transactions: list[Transaction]
    traits: set[str] = field(default_factory=set)  #: `encrypted`, `remote`, `stray`, `host`, `second_call`, `open`


def play(seed: int, *, rough: bool) -> Played:
    """
    Plan and play one room's calls from a seed.

    Smooth rooms hold nothing that an observer of the wire could mistake: no message is lost, nobody has two devices or
    comes back at once, rooms are not encrypted, at most one host cannot send. Rough ones have it all.
    """
    rng = random.Random(seed)  # noqa: S311 - no secrets here
    traits: set[str] = set()

    def trait(name: str, share: float) -> bool:
        if rng.random() < share:
            traits.add(name)
            return True
        return False

    encrypted = rough and trait("encrypted", 0.15)
    simulator = Simulator(seed, encrypted=encrypted, loss=0.05 if rough else 0.0)
    labels = rng.choices([mix for _, mix in _MIXES], [weight for weight, _ in _MIXES])[0]
    count = rng.choices([rng.randint(2, 5), rng.randint(6, 12), rng.randint(13, 30)], [6, 3, 1])[0]
    devices = _devices(rng, count, remote=trait("remote", 0.1), siblings=rough)
    hosts = 0
    able = not trait("host", 0.08)
    for device in devices:
        label = rng.choice(labels)
        fails_at = None
        if not able and label in ("S2", "S3") and rng.random() < 0.4 and (rough or not hosts):
            hosts += 1
            fails_at = rng.choice([0, rng.randint(10_000, 200_000)])
        simulator.add(device, label, host_fails_at=fails_at)
    plan = _Plan(rng, simulator, rough)
    plan.call(devices, 0, is_open=trait("open", 0.08))
    if trait("stray", 0.05):
        simulator.stray(rng.randint(plan.first + 1_000, plan.end), ("@stray:sim.test", "STRAYDEV"))
    if "open" not in traits and trait("second_call", 0.2):
        again = [device for device in devices if rng.random() < 0.7 and (rough or device not in plan.lingering)]
        gap = rng.choice([3_000, 20_000, 90_000]) + rng.randint(0, 30_000)
        plan.call(again, plan.end + (gap if rough else gap + _APART_MS))
    return Played(seed, simulator, simulator.run(plan.end + TAIL_MS), traits)


def _devices(rng: random.Random, count: int, *, remote: bool, siblings: bool) -> list[Device]:
    devices: list[Device] = []
    for number in range(count):
        server = "far.test" if remote and rng.random() < 0.3 else "sim.test"
        user = f"@{'u' * rng.randint(1, 12)}{number}:{server}"
        if siblings and devices and rng.random() < 0.06:
            user = rng.choice(devices)[0]  # a second device of a user
        devices.append((user, "".join(rng.choices("ABCDEFGHIJKLMNOPQRSTUVWXYZ", k=8)) + f"{number:02d}"))
    return devices


@dataclass
class _Plan:
    """Plans the calls of a room, one after the other."""

    rng: random.Random
    simulator: Simulator
    rough: bool
    first: int = 0  #: time of the first join
    end: int = 0  #: time of the last leave
    lingering: set[Device] = field(default_factory=set)  #: left, and the process goes on

    def call(self, devices: list[Device], start: int, *, is_open: bool = False) -> None:
        """Plan one call."""
        rng = self.rng
        pace = rng.choice([700, 4_000, 12_000, 30_000])
        leaves = start + len(devices) * pace + rng.randint(15_000, 240_000)
        now = self.end = max(start, self.end)
        for device in devices:
            now += rng.randint(1, 2 * pace)
            self.first = self.first or now
            self._device(device, now, leaves, is_open)

    def _device(self, device: Device, at: int, leaves: int, is_open: bool) -> None:
        rng = self.rng
        while True:
            self.simulator.join(at, device)
            at += rng.randint(2_000, max(3_000, leaves - at)) if rng.random() < 0.5 else max(2_000, leaves - at)
            at += rng.randint(0, 8_000)
            self.end = max(self.end, at)
            if is_open and at >= leaves and rng.random() < 0.5:
                return  # stays to the end
            is_last = at > leaves or rng.random() < 0.6
            if rng.random() < 0.12:
                left_after = rng.randint(3_000, 8_000)
                self.simulator.crash(at, device, leave_after=left_after)
                at += left_after + 1_000
            else:
                linger = rng.random() < 0.6 and (self.rough or is_last)
                self.simulator.leave(at, device, linger=linger)
                self.lingering |= {device} if linger else set()
                at += 1_000
            self.end = max(self.end, at)
            if is_last:
                return
            at += rng.randint(500, 20_000) + (0 if self.rough else _APART_MS)
