"""
Holds a report against the log of a played room: every difference, with its reason where the log knows one.

A reason names what no observer of the wire can know, or tell apart. It is worked out from the log, per device, and
explains differences about that device; differences in the counts of a call may have any reason met in it.
"""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rtc_appservice.core.model import CallReport, Report

from .expected import Call, calls_of
from .generations import GENERATIONS, Device
from .plans import Played
from .simulator import START
from .truth import Stint, Truth

REASONS = {
    "lost": "none of the device's to-device keys reached the appservice, so it looks like a room-only client",
    "rejoin": "the device left, sent one more key, and was back within the second: the key can be of either stint",
    "siblings": "its user has several devices in the room, and envelopes name the user only",
    "remote": "it spoke by to-device to other servers' users only, whose envelopes are not shown",
    "sealed": "encrypted: its keys' padding, a stranger's key, or a history of keys (R0) cannot be told by length",
    "both": "its host refuses to send, and a room key came just before it joined: it may have heard it",
    "together": "several room keys came at once, or one as it joined: which it heard first, only the client knows",
    "crash": "a device had crashed and was still a member, so it seems not to react",
}
REJOIN_MS = 1_000
TOGETHER_MS = 1_000


@dataclass(frozen=True)
class Difference:
    """Something the report says otherwise than the log."""

    seed: int
    call: int  #: start of the call, from the start of the recording
    what: str
    expected: Any
    found: Any
    reason: str | None


@dataclass
class Tally:
    """What was right, wrong and missing, by kind, and every difference."""

    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)
    missing: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def precision(self, kind: str) -> float:
        """Give the share of what was reported that is so."""
        return _share(self.right[kind], self.wrong[kind])

    def recall(self, kind: str) -> float:
        """Give the share of what is so that was reported."""
        return _share(self.right[kind], self.missing[kind])

    def table(self) -> str:
        """Give precision and recall by kind, and the differences by reason."""
        kinds = sorted(set(self.right) | set(self.wrong) | set(self.missing))
        lines = [f"{'':36}{'right':>8}{'wrong':>7}{'missing':>9}{'precision':>11}{'recall':>9}"]
        lines += [
            f"{kind:36}{self.right[kind]:8}{self.wrong[kind]:7}{self.missing[kind]:9}"
            f"{self.precision(kind):11.4f}{self.recall(kind):9.4f}"
            for kind in kinds
        ]
        reasons = Counter(difference.reason or "UNEXPLAINED" for difference in self.differences)
        lines += [f"differences: {reason} {count}" for reason, count in sorted(reasons.items())]
        lines += [f"  {difference}" for difference in self.differences if difference.reason is None][:20]
        return "\n".join(lines)

    def add(self, other: "Tally") -> None:
        """Take in another tally."""
        self.right += other.right
        self.wrong += other.wrong
        self.missing += other.missing
        self.differences += other.differences


def compare(played: Played, report: Report) -> Tally:
    """Compare every call of a room."""
    tally = Tally()
    truth = played.simulator.truth
    found = {_ms(call.started_at): call for call in report.calls}
    expected = {call.started_at: call for call in calls_of(truth)}
    for started_at in sorted(set(found) | set(expected)):
        if started_at in found and started_at in expected:
            _Comparison(played.seed, expected[started_at], found[started_at], tally).run()
            tally.right["calls"] += 1
        else:
            (tally.missing if started_at in expected else tally.wrong)["calls"] += 1
            tally.differences.append(
                Difference(played.seed, started_at - START, "calls", started_at in expected, started_at in found, None)
            )
    return tally


class _Comparison:
    """One call."""

    def __init__(self, seed: int, call: Call, report: CallReport, tally: Tally) -> None:
        self.seed, self.call, self.report, self.tally = seed, call, report, tally
        self.reasons = reasons(call)
        self.suffix = ", encrypted" if call.truth.encrypted else ""

    def run(self) -> None:
        """Compare everything; counts first, then what names devices."""
        call, report = self.call, self.report
        owed = call.obligations()
        outcomes = Counter(obligation.outcome for obligation in owed)
        counted = {name: getattr(report.obligations, name) for name in report.obligations.__struct_fields__}
        stints = Counter((stint.device, stint.joined_at, stint.left_at) for stint in call.stints)
        found_stints = Counter(
            ((who.user_id, who.device_id), _ms(stint.joined_at), None if stint.left_at is None else _ms(stint.left_at))
            for who in report.participants
            for stint in who.stints
        )
        self._exact("participants and stints", stints, found_stints)
        self._exact("max participants", call.max_participants(), report.max_participants)
        self._exact("end", call.ended_at, None if report.ended_at is None else _ms(report.ended_at))
        self._exact("encrypted room", call.truth.encrypted, report.encrypted_room)
        self._exact("deliveries", len(call.deliveries), report.deliveries.to_device)
        self._exact("unclassified", 0, report.deliveries.unclassified)
        self._exact("obligations", len(owed), sum(counted.values()))
        self._count("room keys", len(call.room_keys), report.distributions.room_event)
        self._count("deliveries after leaving", call.after_leave(), report.deliveries.after_leave)
        self._count("to-device distributions", call.distributions(), report.distributions.to_device)
        self._count("outcomes", dict(outcomes), {name: count for name, count in counted.items() if count})
        self._count("verdict", call.verdict(outcomes["unconfirmed"]), report.verdict.value)
        self._fallbacks()
        self._generations()
        self._findings()

    def _fallbacks(self) -> None:
        expected = {(fallback.device, fallback.at): fallback for fallback in self.call.fallbacks()}
        found = {((str(f.user_id), str(f.device_id)), _ms(f.at)): f for f in self.report.fallbacks}
        for key in sorted(set(expected) & set(found)):
            wanted, told = expected[key], found[key]
            cause = told.cause.value
            if wanted.cause == cause:
                self.tally.right[f"cause {cause}" + self.suffix] += 1
            else:
                self.tally.wrong[f"cause {cause}" + self.suffix] += 1
                self.tally.missing[f"cause {wanted.cause}" + self.suffix] += 1
                self._differ(f"cause of {key}", wanted.cause, cause, (key[0],))
                continue
            self._device_count("room keys of a fallback", wanted.room_keys, told.room_keys, key[0])
            by = None if told.caused_by is None else (told.caused_by.user_id, told.caused_by.device_id)
            if wanted.caused_by == by:
                self.tally.right["caused by" + self.suffix] += 1
            else:
                self.tally.wrong["caused by" + self.suffix] += 1
                known = [device for device in (wanted.caused_by, by) if device is not None]
                reason = "together" if self._came_together(key, wanted.trigger, by) else None
                self._differ(f"caused_by of {key}", wanted.caused_by, by, (key[0], *known), reason)

    def _came_together(self, first: tuple[Device, int], trigger: str | None, told: Device | None) -> bool:
        heard = [key.at for key in self.call.room_keys if key.event_id == trigger]
        heard += [stint.joined_at for stint in self.call.stints if stint.device == first[0]]
        by_told = [key.at for key in self.call.room_keys if key.device == told]
        return any(abs(one - other) <= TOGETHER_MS for one in heard for other in by_told)

    def _generations(self) -> None:
        labels = {stint.device: GENERATIONS[stint.label].name for stint in self.call.stints}
        for participant in self.report.participants:
            device = (participant.user_id, participant.device_id)
            name, told = labels[device], participant.generation
            if told == "unknown":
                self.tally.missing["generation" + self.suffix] += 1
            elif told in (name, name[0]):
                self.tally.right["generation" + self.suffix] += 1
            else:
                self.tally.wrong["generation" + self.suffix] += 1
                self._differ(f"generation of {device}", name, told, (device,))

    def _findings(self) -> None:
        expected, found = Counter(self._expected_findings()), Counter(self._found_findings())
        for finding in sorted(set(expected) | set(found), key=repr):
            kind, devices = str(finding[0]), [part for part in finding[1:] if isinstance(part, tuple)]
            right = min(expected[finding], found[finding])
            self.tally.right[f"finding {kind}" + self.suffix] += right
            self.tally.wrong[f"finding {kind}" + self.suffix] += found[finding] - right
            self.tally.missing[f"finding {kind}" + self.suffix] += expected[finding] - right
            if expected[finding] != found[finding]:
                crashed = kind == "split_call" and any(
                    stint.device in devices and stint.crashed_at is not None for stint in self.call.stints
                )
                reason = "crash" if crashed else None
                self._differ(f"finding {finding}", expected[finding], found[finding], devices, reason)

    def _expected_findings(self) -> Iterator[tuple[Hashable, ...]]:
        call = self.call
        for fallback in call.fallbacks():
            if fallback.cause == "stray":
                yield "stray_key", fallback.device
            else:
                yield "fallback", fallback.device, fallback.at
        for one, other in call.splits():
            yield "split_call", one, other
        for device, at in call.not_rotated():
            yield "not_rotated", device, at
        for owed in call.obligations():
            pair = (owed.sender.device, owed.recipient.device, owed.at, owed.moment)
            if owed.outcome in ("missing", "recovered_by_room_event"):
                yield "key_not_received", *pair
            if owed.late:
                yield "key_late", *pair
        if not call.truth.encrypted:
            for device, count in call.room_keys_of().items():
                yield "key_in_clear", device, count
                yield "key_readable_in_history", device, count

    def _found_findings(self) -> Iterator[tuple[Hashable, ...]]:
        for finding in self.report.findings:
            subject = None if finding.subject is None else (finding.subject.user_id, finding.subject.device_id)
            kind, details = finding.kind.value, finding.details
            if kind in ("fallback", "not_rotated"):
                yield kind, subject, _ms(finding.at)
            elif kind in ("key_not_received", "key_late"):
                yield kind, subject, _device(details["recipient"]), _ms(finding.at), details["moment"]
            elif kind == "split_call":
                yield kind, subject, _device(details["other"])
            elif kind in ("key_in_clear", "key_readable_in_history"):
                yield kind, subject, details["count"]
            else:
                yield kind, subject

    def _exact(self, what: str, expected: Any, found: Any) -> None:
        """Nothing excuses a difference here."""
        if expected == found:
            self.tally.right[what + self.suffix] += 1
        else:
            self.tally.wrong[what + self.suffix] += 1
            self._differ(what, expected, found, ())

    def _count(self, what: str, expected: Any, found: Any) -> None:
        if expected == found:
            self.tally.right[what + self.suffix] += 1
        else:
            self.tally.wrong[what + self.suffix] += 1
            self._differ(what, expected, found, tuple(self.reasons))

    def _device_count(self, what: str, expected: int, found: int, device: Device) -> None:
        if expected == found:
            self.tally.right[what + self.suffix] += 1
        else:
            self.tally.wrong[what + self.suffix] += 1
            self._differ(f"{what} of {device}", expected, found, (device,))

    def _differ(self, what: str, expected: Any, found: Any, devices: Any, reason: str | None = None) -> None:
        known = [name for device in devices for name in sorted(self.reasons.get(device, ()))]
        self.tally.differences.append(
            Difference(
                self.seed,
                self.call.started_at - START,
                what,
                expected,
                found,
                reason or (known[0] if known else None),
            )
        )


def reasons(call: Call) -> dict[Device, set[str]]:
    """Give, by device, what of a call no observer can know or tell apart."""
    found: dict[Device, set[str]] = defaultdict(set)
    truth = call.truth
    users = Counter(device[0] for device in {stint.device for stint in truth.stints})
    for stint in call.stints:
        device = stint.device
        if users[device[0]] > 1:
            found[device].add("siblings")
        if GENERATIONS[stint.label].to_device:
            sent = [message for message in truth.call_keys if message.stint is stint]
            if sent and all(message.received_at is None for message in sent if _is_local(message.recipient, truth)):
                away = not any(_is_local(message.recipient, truth) for message in sent)
                found[device].add("remote" if away else "lost")
        switched = any(switch.stint is stint for switch in truth.switches)
        if truth.encrypted and (switched or stint.label == "R0"):
            found[device].add("sealed")
        if _refused_as_it_joined(call, stint):
            found[device].add("both")
    for device in {sent.device for sent in truth.room_keys if sent.after_leave} | {
        message.sender for message in truth.call_keys if message.after_leave
    }:
        if _came_back_at_once(truth, device):
            found[device].add("rejoin")
    if truth.encrypted:
        for key in truth.room_keys:
            if key.stint is None:
                found[key.device].add("sealed")
    return found


def _refused_as_it_joined(call: Call, stint: Stint) -> bool:
    return any(switch.stint is stint and switch.trigger is None for switch in call.truth.switches) and any(
        key.device != stint.device and stint.joined_at - TOGETHER_MS <= key.at < stint.joined_at
        for key in call.room_keys
    )


def _came_back_at_once(truth: Truth, device: Device) -> bool:
    moments = [key.at for key in truth.room_keys if key.device == device and key.after_leave]
    moments += [m.received_at or m.at for m in truth.call_keys if m.sender == device and m.after_leave]
    joins = [stint.joined_at for stint in truth.stints if stint.device == device]
    return any(at <= join <= at + REJOIN_MS or join <= at <= join + TOGETHER_MS for at in moments for join in joins)


def _is_local(device: Device, truth: Truth) -> bool:
    return device[0].endswith(":" + truth.server)


def _device(value: dict[str, str]) -> Device:
    return value["user_id"], value["device_id"]


def _ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


def _share(right: int, other: int) -> float:
    return right / (right + other) if right + other else 1.0
