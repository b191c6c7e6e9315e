"""
Stage 7: writes `docs/detection.md` from what the core says of its findings, causes, outcomes and marks.

Run as `python -m rtc_appservice.view.detection` in the repository. A test fails while the file differs.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from rtc_appservice.core import (
    anomalies,
    attribution,
    envelope,
    fallback,
    generation,
    lengths,
    obligations,
    traffic,
    verdict,
)
from rtc_appservice.core.catalogue import CAUSES, FINDINGS, GAPS, OUTCOMES, Meaning
from rtc_appservice.core.model import Settings
from rtc_appservice.core.words import BLOCKING_CAUSES

PATH = Path(__file__).parents[2] / "docs" / "detection.md"

Name = TypeVar("Name", bound=StrEnum)

_INTRO = """\
# What is detected, and what it does not mean

Written by `python -m rtc_appservice.view.detection`; do not edit.

Everything here is decided from observations alone, by pure functions in `rtc_appservice/core/`, so that a replay finds
the same. Each finding and number carries the grade of its weakest necessary evidence: `direct` (read in clear),
`decrypted` (by a device of ours), `inferred` (from metadata or absence), `reported` (by a client). The examples are
recorded calls of real clients on a real homeserver, in `tests/data/recordings/`; a test holds each to showing what it
is named for.
"""


def render() -> str:
    """Give the whole page."""
    settings = Settings()
    parts = [
        _INTRO,
        "\n## Fallbacks and their causes\n\nA device's first room key in a call is a fallback. Causes are tried in this"
        " order, the first that fits is taken, and it stays once the finding has settled. **Blockers** stand in the way"
        " of switching the room-event backup off; reports count them by cause, client generation and platform. The"
        " platform is told from the name a client gave its device, as far as the homeserver shows it, and is joined"
        " when a report is read: nothing is detected from it, and a replay finds the same.\n",
        _meanings(CAUSES, {cause for cause in CAUSES if cause in BLOCKING_CAUSES}),
        "\n## Findings\n\nA finding is of one call, or of a room: `stray_key`, `key_in_clear`,"
        " `key_readable_in_history`, `malformed` and `forged_membership` also tell of what belongs to no call, one a"
        " room, sender and day (UTC), with a `count`. Those of a room settle"
        f" {settings.horizon_seconds + settings.late_seconds:g} s after their day. Nothing of"
        " them is sent to PostHog, where every event is of a call: a key outside calls makes nobody fall back. They are"
        " in the report (`findings`), on the page of the room, and in `rtc_appservice_findings_total`.\n",
        _meanings(FINDINGS, set()),
        "\n## Obligations\n\nFor each ordered pair of participants present together the sender owes the recipient a key"
        " by to-device: when either joins, and a new one when somebody leaves. Each ends in exactly one outcome.\n",
        "\n| outcome | when |\n| --- | --- |\n",
        *(f"| `{outcome.value}` | {meaning} |\n" for outcome, meaning in OUTCOMES.items()),
        "\n## Gaps\n\nTimes in which something may not have been seen. Reports list those that reach into their time,"
        " and a call is judged by those of its homeserver and its room. What was seen in a gap counts all the same.\n",
        "\n| reason | what it says, and what follows |\n| --- | --- |\n",
        *(f"| `{reason.value}` | {meaning} |\n" for reason, meaning in GAPS.items()),
        "\nOf several instances on one database, one that lived all the while takes a `service_down` back at its next"
        " heartbeat (10 s), and any that gets the homeserver's transactions in time ends what another began. An"
        " instance that was killed does neither, so its restart leaves its gap, however short. Starts that come to"
        " nothing, one after the other, are one gap.\n",
        "\n## Times\n\n| what | seconds |\n| --- | --- |\n",
        f"| grace: a key counts as on time | {settings.grace_seconds:g} |\n",
        f"| horizon: a key counts at all | {settings.horizon_seconds:g} |\n",
        f"| a finding settles this long after its horizon | {settings.late_seconds:g} |\n",
        f"| a key may precede its own membership | {attribution.KEY_BEFORE_STINT.total_seconds():g} |\n",
        f"| a key may follow the end of its stint | {envelope.KEY_AFTER_STINT.total_seconds():g} |\n",
        f"| an envelope may precede or follow a stint | {envelope.ENVELOPE_SLACK.total_seconds():g} |\n",
        f"| envelopes this near are one distribution | {traffic.ONE_DISTRIBUTION.total_seconds():g} |\n",
        f"| a room key counts as sent with its own join | {fallback.WITH_JOIN.total_seconds():g} |\n",
        f"| silent this long after a room key: it does not react | {generation.NO_REACTION.total_seconds():g} |\n",
        f"| window of a rotation storm | {anomalies.STORM_WINDOW.total_seconds():g} |\n",
        f"\nA call is `no_keys` only with at least {verdict.SILENT_OBLIGATIONS} silent obligations and none delivered. "
        f"A delivery may come {obligations.EARLY.total_seconds():g} s before the join that made it due.\n\n"
        f"A room key counts as sent with its own join within {fallback.WITH_JOIN.total_seconds():g} s of it, no more:"
        " recorded room-only clients send within 0.6 s, and one that began with to-device and switched is held back by"
        " its throttle of 3 s.\n",
        "\n## Client generations\n\nEach mark leaves some generations possible; what all leave is the answer: one,"
        " the letter they share, or `unknown`.\n\n| mark | generations that can leave it |\n| --- | --- |\n",
        *(f"| `{mark}` | {', '.join(sorted(left))} |\n" for mark, left in generation.MARKS.items()),
        "\n## Sealed messages\n\nThe length of a key message follows from ids everybody can see"
        " (`rtc_appservice/core/lengths.py`). A to-device message counts as a key if its length lies within"
        f" {lengths.TOLERANCE_CHARACTERS} base64 characters (one AES block) of a key's prediction and no Megolm session"
        " share is nearer. An unreadable room event of a call device counts as a room key, `inferred`, if its length is"
        " one a key event can have.\n",
    ]
    return "".join(parts)


def _meanings(meanings: Mapping[Name, Meaning], blockers: set[Name]) -> str:
    sections = []
    for name, meaning in meanings.items():
        shown = f"recording `{meaning.recording}`" if meaning.recording else "in no recording yet"
        sections.append(
            f"\n### `{name.value}`{' (blocker)' if name in blockers else ''}\n\n"
            f"- **Rule:** {meaning.rule}\n- **Rests on:** {meaning.rests_on}\n"
            f"- **Does not mean:** {meaning.does_not_mean}\n- **Example:** {shown}\n"
        )
    return "".join(sections)


if __name__ == "__main__":
    PATH.write_text(render())
