"""Stage 5: can the room-event backup be switched off? Calls in, a verdict with reasons in words out."""

import math
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta

from rtc_appservice.core.model import (
    BLOCKING_CAUSES,
    CallReport,
    Coverage,
    FindingKind,
    Platform,
    Readiness,
    Verdict,
)

#: Share of calls that must be all to-device before the backup may go; 381 clean calls reach it.
TARGET = 0.99
#: No blocker may have been seen for so long.
NO_BLOCKER_FOR = timedelta(days=14)
#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054
_JUDGED = (Verdict.TO_DEVICE, Verdict.ROOM_EVENT, Verdict.MIXED)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Give the Wilson score interval (95 %) of a share; trials must be positive."""
    share = successes / trials
    spread = _Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def assess(calls: Sequence[CallReport], now: datetime, target: float = TARGET) -> Readiness:
    """
    Judge the calls of one homeserver and window.

    `ready`: the lower bound reaches the target, no blocker for 14 days, no live split. `not_ready`: the upper bound
    stays below the target, or a recent blocker, or a live split. Else `insufficient_data`.
    """
    judged = [call for call in calls if call.verdict in _JUDGED]
    clean = sum(call.verdict is Verdict.TO_DEVICE for call in judged)
    share = clean / len(judged) if judged else None
    lower, upper = wilson_interval(clean, len(judged)) if judged else (None, None)
    blockers = _blockers(calls, now)
    splits = sum(_is_split_live(call) for call in calls)
    reasons = _reasons(calls, judged, clean, lower, upper, blockers, splits, now, target)
    if (upper is not None and upper < target) or blockers or splits:
        verdict = "not_ready"
    elif lower is not None and lower >= target:
        verdict = "ready"
    else:
        verdict = "insufficient_data"
    return Readiness(
        verdict=verdict,
        share=share,
        lower_bound=lower,
        upper_bound=upper,
        blockers=blockers,
        reasons=tuple(reasons),
    )


def _blockers(calls: Sequence[CallReport], now: datetime) -> tuple[dict[str, object], ...]:
    """Count devices that block the switch-off, by cause, generation and platform, seen within 14 days."""
    devices: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    last: dict[tuple[str, str, str], datetime] = {}
    for call in calls:
        clients = {
            (p.user_id, p.device_id): (p.generation, (p.platform or Platform.UNKNOWN).value) for p in call.participants
        }
        for fallback in call.fallbacks:
            if fallback.cause not in BLOCKING_CAUSES or fallback.at < now - NO_BLOCKER_FOR:
                continue
            client = clients.get((fallback.user_id, fallback.device_id), ("unknown", Platform.UNKNOWN.value))
            kind = (fallback.cause.value, *client)
            devices.setdefault(kind, set()).add((fallback.user_id, fallback.device_id))
            last[kind] = max(fallback.at, last.get(kind, fallback.at))
    return tuple(
        {
            "cause": kind[0],
            "generation": kind[1],
            "platform": kind[2],
            "devices": len(found),
            "last_seen_at": last[kind],
        }
        for kind, found in sorted(devices.items())
    )


def _is_split_live(call: CallReport) -> bool:
    return call.ended_at is None and any(finding.kind is FindingKind.SPLIT_CALL for finding in call.findings)


def _reasons(
    calls: Sequence[CallReport],
    judged: Sequence[CallReport],
    clean: int,
    lower: float | None,
    upper: float | None,
    blockers: Sequence[dict[str, object]],
    splits: int,
    now: datetime,
    target: float,
) -> list[str]:
    reasons = []
    if lower is None or upper is None:
        reasons.append("No call could be judged yet.")
    else:
        reasons.append(
            f"{clean} of {len(judged)} judged calls sent all media keys by to-device: {clean / len(judged):.1%}, "
            f"95 % interval {lower:.1%} to {upper:.1%}, target {target:.1%}."
        )
        if upper < target:
            reasons.append("Even the upper bound lies below the target.")
        elif lower < target:
            reasons.append("The interval still spans the target: more calls are needed.")
    reasons += [
        f"{blocker['devices']} device(s) of generation {blocker['generation']}, platform {blocker['platform']}, "
        f"block the switch-off ({blocker['cause']}), seen within the last 14 days."
        for blocker in blockers
    ]
    if splits:
        reasons.append(f"{splits} call(s) going on now are split: participants cannot get each other's keys.")
    last = max((fallback.at for call in calls for fallback in call.fallbacks), default=None)
    if last is not None:
        reasons.append(f"The last fallback to room keys began {max(0, (now - last).days)} day(s) ago.")
    unjudged = Counter(call.verdict.value for call in calls if call.verdict not in _JUDGED)
    if unjudged:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(unjudged.items()))
        reasons.append(f"Not judged: {listed}.")
    blind = sum(Coverage.ENVELOPES not in call.coverage and Coverage.WITNESS not in call.coverage for call in calls)
    if blind:
        reasons.append(f"{blind} of {len(calls)} calls were watched without sight of to-device messages.")
    return reasons
