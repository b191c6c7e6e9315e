"""
Stage 7: a report as people read it, and as programs read it.

Names in a report come from strangers: anything that a terminal would obey is shown as a replacement character.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from typing import TypeVar

import msgspec
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from rtc_appservice.core.model import (
    CallReport,
    DeviceRef,
    Fallback,
    Finding,
    Participant,
    Readiness,
    Report,
    RoomFinding,
    Stint,
)
from rtc_appservice.core.observed import Gap
from rtc_appservice.core.wording import how_many
from rtc_appservice.core.words import BLOCKING_CAUSES, Platform
from rtc_appservice.view.words import (
    CAUSES,
    GAPS,
    READINESS,
    SEVERITIES,
    VERDICTS,
    clock,
    count_of,
    device_name,
    length,
    moment,
    plain,
)

#: So many of the newest calls are told of, unless more are asked for: some ten screens.
CALLS = 10
#: More than this of anything in a call is for `--format json`.
LISTED = 30

_T = TypeVar("_T")


def render_json(report: Report) -> bytes:
    """Give a report as JSON, with a line break at its end. The field names are a stable contract."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"


def render_text(report: Report, *, calls: int = CALLS, width: int = 120) -> str:
    """Give a report as text for an operator, with so many calls, at most `width` columns wide, without colours."""
    out = StringIO()
    console = Console(file=out, width=width, color_system=None, highlight=False, markup=False, emoji=False)
    console.print(f"MatrixRTC media keys, as of {moment(report.generated_at)}\n")
    _print_readiness(console, report.readiness)
    _print_totals(console, report)
    left_out = max(0, len(report.calls) - calls)
    for number, call in enumerate(report.calls[left_out:], start=left_out + 1):
        print_call(console, number, call)
    if left_out:
        console.print(
            f"Earlier calls left out: {left_out}; `--calls {len(report.calls)}` tells of all, "
            "and so do `--format json` and `--format csv`.\n"
        )
    _print_outside(console, report.findings)
    _print_gaps(console, report.gaps)
    lines = "\n".join(line.rstrip() for line in out.getvalue().splitlines())
    return re.sub(r"\n{3,}", "\n\n", lines).rstrip() + "\n"


def _print_readiness(console: Console, readiness: Readiness) -> None:
    console.print(READINESS.get(readiness.verdict, plain(readiness.verdict)))
    _print_bullets(console, readiness.reasons)
    console.print()


def _print_totals(console: Console, report: Report) -> None:
    by_verdict = ", ".join(f"{count} {verdict}" for verdict, count in report.totals.by_verdict.items())
    console.print(f"Calls: {report.totals.calls}" + (f" ({by_verdict})" if by_verdict else ""))
    console.print(f"Room events with media keys that stand in room history: {report.totals.room_keys_in_history}\n")


def print_call(console: Console, number: int, call: CallReport) -> None:
    """Print one call of a report."""
    title = f"Call {number}: {call.verdict}, {VERDICTS[call.verdict]} (evidence: {call.evidence})"
    console.rule(Text(title), align="left", characters="-")
    facts = new_table("fact", "value", header=False)
    for name, value in _facts(call):
        facts.add_row(name, Text(value))
    console.print(facts)
    _print_participants(console, call.participants)
    _print_fallbacks(console, call.fallbacks)
    _print_findings(console, call.findings)
    console.print()


def _facts(call: CallReport) -> Iterable[tuple[str, str]]:
    ended = (
        "still going on"
        if call.ended_at is None
        else f"{moment(call.ended_at)} ({length(call.ended_at - call.started_at)})"
    )
    yield "when", f"{moment(call.started_at)} to {ended}" + ("" if call.beginning_seen else "; beginning not seen")
    encrypted = {True: "encrypted", False: "not encrypted", None: "encryption not seen"}[call.encrypted_room]
    yield "where", f"{plain(call.room_id)} on {plain(call.homeserver)}, {encrypted}; slot {plain(call.slot_id)}"
    yield "call id", plain(call.call_id)
    yield "seen by", ", ".join(call.coverage) or "nothing"
    yield "joined as", f"{call.membership_mode}, at most {how_many(call.max_participants, 'device')} at once"
    sent = call.distributions
    yield (
        "keys sent",
        f"{sent.room_event} by room event, {sent.to_device} by to-device"
        f" ({call.deliveries.to_device} deliveries seen), {sent.resends} resent",
    )
    owed = _nonzero(msgspec.structs.asdict(call.obligations))
    yield "keys owed", ", ".join(f"{count} {outcome}" for outcome, count in owed) or "none"


def _print_participants(console: Console, participants: Sequence[Participant]) -> None:
    table = new_table("participant", "device", "generation", "in the call")
    for each, rest in _first(participants):
        if each is None:
            table.add_row(f"and {rest} more", "", "", "")
            continue
        sure = f" ({each.generation_confidence:.0%})" if each.generation != "unknown" else ""
        runs_on = f", {each.platform}" if each.platform not in (None, Platform.UNKNOWN) else ""
        stints = "\n".join(_stint(stint) for stint in each.stints)
        table.add_row(
            Text(plain(each.user_id)), Text(plain(each.device_id)), f"{each.generation}{sure}{runs_on}", stints
        )
    console.print(table)


def _print_fallbacks(console: Console, fallbacks: Sequence[Fallback]) -> None:
    if not fallbacks:
        console.print("Fallbacks to room events: none")
        return
    table = new_table("fell back", "at", "room keys", "cause", "who caused it")
    for each, rest in _first(fallbacks):
        if each is None:
            table.add_row(f"and {rest} more", "", "", "", "")
            continue
        blocks = "; blocks the switch-off" if each.cause in BLOCKING_CAUSES else ""
        remains = f"; may be {' or '.join(each.candidates)}" if each.candidates else ""
        nobody_else = "not known" if each.cause == "unknown" else "itself"
        private = "; its key had been private before" if each.key_was_private else ""
        table.add_row(
            Text(device_name(DeviceRef(user_id=each.user_id, device_id=each.device_id))),
            f"{clock(each.at)}",
            str(each.room_keys),
            f"{each.cause}: {CAUSES[each.cause]}{blocks}{remains}{private} ({each.evidence}, {each.confidence:.0%})",
            Text(device_name(each.caused_by) if each.caused_by else nobody_else),
        )
    console.print(table)


def _print_findings(console: Console, findings: Sequence[Finding]) -> None:
    if not findings:
        console.print("Findings: none")
        return
    counted = Counter((f.severity, f.kind, f.evidence) for f in findings)
    table = new_table("finding", "severity", "evidence", "count", "first", "devices")
    for (severity, kind, evidence), count in sorted(
        counted.items(), key=lambda item: (SEVERITIES.index(item[0][0]), -item[1], item[0][1])
    ):
        alike = [f for f in findings if (f.severity, f.kind, f.evidence) == (severity, kind, evidence)]
        devices = list(dict.fromkeys(device_name(f.subject) for f in alike if f.subject))
        shown = "\n".join(devices[:3]) + (f"\nand {len(devices) - 3} more" if len(devices) > 3 else "")
        first = clock(min(f.at for f in alike))
        table.add_row(str(kind), str(severity), str(evidence), str(count), first, Text(shown))
    console.print(table)


def _print_outside(console: Console, findings: Sequence[RoomFinding]) -> None:
    if not findings:
        return
    console.print("Findings of rooms, outside calls:")
    table = new_table("finding", "count", "first", "who", "where")
    for each, rest in _first(findings):
        if each is None:
            table.add_row(f"and {rest} more", "", "", "", "")
            continue
        graded = f"{each.kind} ({each.severity}, {each.evidence})"
        who = device_name(each.subject) if each.subject else ""
        table.add_row(graded, str(count_of(each)), moment(each.at), Text(who), Text(plain(each.room_id)))
    console.print(table)


def _print_gaps(console: Console, gaps: Sequence[Gap]) -> None:
    if not gaps:
        console.print("Gaps: none known.")
        return
    console.print("Gaps: in these times something may not have been seen.")
    table = new_table("reason", "from", "to", "where")
    for each, rest in _first(gaps):
        if each is None:
            table.add_row(f"and {rest} more", "", "", "")
            continue
        where = each.room_id or each.homeserver
        table.add_row(
            f"{each.reason}: {GAPS[each.reason]}",
            moment(each.started_at) if each.started_at else "not known",
            moment(each.ended_at) if each.ended_at else "not ended",
            Text(plain(where)),
        )
    console.print(table)


def _print_bullets(console: Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(Padding(Text("- " + plain(line)), (0, 0, 0, 2), expand=False))


def new_table(*columns: str, header: bool = True) -> Table:
    """Give an empty table in the style of the reports."""
    table = Table(box=box.SIMPLE_HEAD if header else None, show_header=header, pad_edge=False, padding=(0, 1))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _first(items: Sequence[_T]) -> Iterable[tuple[_T | None, int]]:
    """Yield the first of many, and then None with how many are left."""
    for item in items[:LISTED]:
        yield item, 0
    if len(items) > LISTED:
        yield None, len(items) - LISTED


def _nonzero(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return [(name, count) for name, count in counts.items() if count]


def _stint(stint: Stint) -> str:
    if stint.left_at is None:
        return f"{clock(stint.joined_at)} to now"
    return f"{clock(stint.joined_at)} to {clock(stint.left_at)} ({stint.end_reason or 'unknown'})"
