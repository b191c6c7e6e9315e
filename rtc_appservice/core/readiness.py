"""Stage 5: can the room-event backup be switched off? Calls in, a verdict with reasons in words out."""

import math
from collections.abc import Sequence
from datetime import datetime

from rtc_appservice.core.model import CallReport, Readiness, Settings
from rtc_appservice.core.tally import Tally, tally
from rtc_appservice.core.wording import how_many
from rtc_appservice.core.words import Coverage, Verdict

#: What is to be reached where an operator does not say.
TARGET = Settings().readiness_target
#: Two-sided 95 % quantile of the normal distribution.
_Z = 1.959963984540054
#: The verdicts that enter the share of calls that are all to-device.
JUDGED = (Verdict.TO_DEVICE, Verdict.MIXED, Verdict.ROOM_EVENT)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """Give the Wilson score interval (95 %) of a share; trials must be positive."""
    share = successes / trials
    spread = _Z**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    half = _Z / (1 + spread) * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def assess(calls: Sequence[CallReport], now: datetime, target: float = TARGET) -> Readiness:
    """Judge the calls of one homeserver and window, as `judge` does."""
    return judge(tally(calls, now), now, target)


def judge(counted: Tally, now: datetime, target: float = TARGET) -> Readiness:
    """
    Judge the calls of one homeserver and window, which were counted as of now, by the share that is to be reached.

    `ready`: the lower bound reaches the target, no blocker for 14 days, no live split. `not_ready`: the upper bound
    stays below the target, or a recent blocker, or a live split. Else `insufficient_data`.
    """
    by_verdict = counted.by_verdict()
    judged, clean = sum(by_verdict[verdict] for verdict in JUDGED), by_verdict[Verdict.TO_DEVICE]
    lower, upper = wilson_interval(clean, judged) if judged else (None, None)
    if (upper is not None and upper < target) or counted.blockers or counted.split:
        verdict = "not_ready"
    elif lower is not None and lower >= target:
        verdict = "ready"
    else:
        verdict = "insufficient_data"
    return Readiness(
        verdict=verdict,
        share=clean / judged if judged else None,
        lower_bound=lower,
        upper_bound=upper,
        blockers=tuple(
            {
                "cause": each.cause.value,
                "generation": each.generation,
                "platform": each.platform.value,
                "devices": each.devices,
                "last_seen_at": each.last_seen_at,
            }
            for each in counted.blockers
        ),
        reasons=tuple(_reasons(counted, judged, clean, lower, upper, now, target)),
    )


def _reasons(
    counted: Tally,
    judged: int,
    clean: int,
    lower: float | None,
    upper: float | None,
    now: datetime,
    target: float,
) -> list[str]:
    reasons = []
    if lower is None or upper is None:
        reasons.append("No call could be judged yet.")
    else:
        reasons.append(
            f"{clean} of {judged} judged calls sent all media keys by to-device: {clean / judged:.1%}, "
            f"95 % interval {lower:.1%} to {upper:.1%}, target {target:.1%}."
        )
        if upper < target:
            reasons.append("Even the upper bound lies below the target.")
        elif lower < target:
            reasons.append("The interval still spans the target: more calls are needed.")
    reasons += [
        f"{how_many(blocker.devices, 'device')} of generation {blocker.generation}, platform {blocker.platform}, "
        f"{'stands' if blocker.devices == 1 else 'stand'} in the way ({blocker.cause}), seen within the last 14 days."
        for blocker in counted.blockers
    ]
    if counted.split:
        going_on = how_many(counted.split, "split call")
        reasons.append(f"{going_on} going on now: participants cannot get each other's keys.")
    last = max((cause.last_seen_at for cause in counted.causes), default=None)
    if last is not None:
        reasons.append(f"The last fallback to room keys began {how_many(max(0, (now - last).days), 'day')} ago.")
    unjudged = {verdict.value: calls for verdict, calls in counted.by_verdict().items() if verdict not in JUDGED}
    if unjudged:
        listed = ", ".join(f"{calls} {name}" for name, calls in sorted(unjudged.items()))
        reasons.append(f"Not judged: {listed}.")
    seen = {Coverage.ENVELOPES, Coverage.WITNESS}
    blind = sum(count.calls for count in counted.counts if seen.isdisjoint(count.coverage))
    if blind:
        reasons.append(f"{blind} of {counted.calls} calls were watched without sight of to-device messages.")
    return reasons
