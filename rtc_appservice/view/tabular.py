"""Stage 7: reports and calls as CSV for a spreadsheet, and as Markdown to paste into an issue."""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO

import msgspec

from rtc_appservice.core.explain import CallExplanation, OwedKey
from rtc_appservice.core.model import (
    CallReport,
    DeliveryCounts,
    DeviceRef,
    DistributionCounts,
    ObligationCounts,
    Report,
    RoomFinding,
)
from rtc_appservice.core.words import BLOCKING_CAUSES
from rtc_appservice.view.words import (
    CAUSES,
    GAPS,
    OUTCOMES,
    READINESS,
    VERDICTS,
    clock,
    count_of,
    length,
    moment,
    plain,
    precise,
)

#: So many of the newest calls stand in Markdown, unless more are asked for; and of the gaps.
LISTED = 30

#: A user id in the grammar of today; other text that begins as a formula does is not given to a spreadsheet as it is.
_USER_ID = re.compile(r"@[a-z0-9._=/+-]+:[A-Za-z0-9.:\[\]-]+")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_CALL_COLUMNS = (
    "call_id", "homeserver", "room_id", "slot_id", "started_at", "ended_at", "settled", "beginning_seen",
    "encrypted_room", "membership_mode", "coverage", "verdict", "evidence", "max_participants",
)  # fmt: skip
_GROUPS = {"distributions": DistributionCounts, "deliveries": DeliveryCounts, "obligations": ObligationCounts}
_COUNT_COLUMNS = tuple(f"{group}.{name}" for group, counts in _GROUPS.items() for name in counts.__struct_fields__)
_LINE_COLUMNS = (
    "at", "what", "user_id", "device_id", "recipient_user_id", "recipient_device_id", "key_transport", "key_index",
    "recipients", "moment", "outcome", "met_at", "evidence", "note",
)  # fmt: skip


def report_csv(report: Report) -> str:
    """Give a report's calls as CSV, a line a call; nested counts are columns such as `obligations.missing`."""
    lines = []
    for call in report.calls:
        values = msgspec.structs.asdict(call)
        line = {name: values[name] for name in _CALL_COLUMNS} | {"coverage": " ".join(call.coverage)}
        for group in _GROUPS:
            counts = msgspec.structs.asdict(values[group])
            line |= {f"{group}.{name}": count for name, count in counts.items()}
        line |= {"fallbacks": len(call.fallbacks), "causes": " ".join(sorted({f.cause for f in call.fallbacks}))}
        line |= {"findings": len(call.findings)}
        lines.append(line)
    return _csv((*_CALL_COLUMNS, *_COUNT_COLUMNS, "fallbacks", "causes", "findings"), lines)


def call_csv(told: CallExplanation) -> str:
    """Give a call as CSV: what happened, and each key owed (`what` is `owed`), in order of time."""
    lines: list[tuple[datetime, dict[str, object]]] = []
    for entry in told.timeline:
        who = {} if entry.device is None else msgspec.structs.asdict(entry.device)
        lines.append((entry.at, {**msgspec.structs.asdict(entry), **who}))
    for key in told.owed:
        line = msgspec.structs.asdict(key) | msgspec.structs.asdict(key.sender)
        line |= {"what": "owed", "at": key.owed_at, "note": key.excuse}
        line |= {"recipient_user_id": key.recipient.user_id, "recipient_device_id": key.recipient.device_id}
        lines.append((key.owed_at, line))
    lines.sort(key=lambda line: line[0])
    return _csv(_LINE_COLUMNS, [line for _, line in lines])


def _csv(columns: Sequence[str], lines: Iterable[Mapping[str, object]]) -> str:
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(line.get(name)) for name in columns] for line in lines)
    return out.getvalue()


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bool):
        return str(value).lower()
    text = plain(str(value))
    return f"'{text}" if text.startswith(_FORMULA) and not _USER_ID.fullmatch(text) else text


def report_markdown(report: Report, *, calls: int = LISTED) -> str:
    """Give a report as Markdown: readiness, causes of fallbacks, so many of the newest calls, gaps."""
    totals = report.totals
    parts = [
        f"## MatrixRTC media keys, as of {moment(report.generated_at)}",
        f"**{READINESS.get(report.readiness.verdict, report.readiness.verdict)}**",
        "\n".join(f"- {plain(reason)}" for reason in report.readiness.reasons),
        f"Calls: {totals.calls}. Room events with media keys that stand in room history: {totals.room_keys_in_history}",
    ]
    causes = Counter((f.cause, f.evidence) for call in report.calls for f in call.fallbacks)
    if causes:
        rows = [
            (cause, CAUSES[cause], "yes" if cause in BLOCKING_CAUSES else "no", evidence, count)
            for (cause, evidence), count in sorted(causes.items(), key=lambda item: (-item[1], item[0]))
        ]
        parts += ["### Fallbacks", _table(("cause", "meaning", "blocks", "evidence", "fallbacks"), rows)]
    if report.calls:
        left_out = max(0, len(report.calls) - calls)
        newest = report.calls[left_out:]
        left = f" (the {len(newest)} newest of {len(report.calls)}; `--calls` tells of more)" if left_out else ""
        columns = ("started", "length", "verdict", "evidence", "devices", "fallbacks", "findings", "call")
        parts += [f"### Calls{left}", _table(columns, map(_call_row, newest))]
    if report.findings:
        parts += ["### Findings of rooms, outside calls", _outside(report.findings)]
    gap_rows = [
        (gap.reason, GAPS[gap.reason], _when(gap.started_at), _when(gap.ended_at), _code(gap.room_id or gap.homeserver))
        for gap in report.gaps[-LISTED:]
    ]
    parts += ["### Gaps", _table(("reason", "meaning", "from", "to", "where"), gap_rows) if gap_rows else "None known."]
    return "\n\n".join(parts) + "\n"


def _outside(findings: Sequence[RoomFinding]) -> str:
    rows: list[Sequence[object]] = [
        (moment(found.at), found.kind, found.severity, found.evidence, who, count_of(found), _code(found.room_id))
        for found in findings[:LISTED]
        for who in [_code(found.subject.user_id) if found.subject else ""]
    ]
    if len(findings) > LISTED:
        rows.append((f"and {len(findings) - LISTED} more", "", "", "", "", "", ""))
    return _table(("first", "finding", "severity", "evidence", "who", "count", "where"), rows)


def _call_row(call: CallReport) -> tuple[object, ...]:
    long = length(call.ended_at - call.started_at) if call.ended_at else "still going on"
    devices, findings = call.max_participants, len(call.findings)
    shown = (call.verdict, call.evidence, devices, len(call.fallbacks), findings)
    return (moment(call.started_at), long, *shown, _code(call.call_id))


def call_markdown(told: CallExplanation) -> str:
    """Give a call as Markdown: facts, timeline, and the keys that were owed, by sender and recipient."""
    call = told.call
    end = f"{moment(call.ended_at)} ({length(call.ended_at - call.started_at)})" if call.ended_at else "still going on"
    timeline = [
        (precise(entry.at), _what(entry.what, entry.note), _device(entry.device), entry.key_transport, entry.evidence)
        for entry in told.timeline
    ]
    parts = [
        f"## Call {_code(call.call_id)}",
        f"**{VERDICTS[call.verdict]}** (`{call.verdict}`, evidence: {call.evidence})",
        f"- from {moment(call.started_at)} to {end}\n"
        f"- room {_code(call.room_id)}, slot {_code(call.slot_id)}\n"
        f"- seen by: {', '.join(call.coverage) or 'nothing'}",
        "### Timeline",
        _table(("at", "what", "device", "key transport", "evidence"), timeline),
    ]
    if told.owed:
        parts += ["### Keys owed", _table(("by", "to", "what came of it"), _owed_rows(told.owed))]
    return "\n\n".join(parts) + "\n"


def _owed_rows(owed: Sequence[OwedKey]) -> list[tuple[object, ...]]:
    pairs: dict[tuple[str, str], list[str]] = {}
    for key in owed:
        met = f" at {clock(key.met_at)}" if key.met_at else ""
        text = f"{clock(key.owed_at)} {key.moment}: {OUTCOMES[key.outcome]}{met}"
        pairs.setdefault((_device(key.sender), _device(key.recipient)), []).append(text)
    return [(sender, recipient, "<br>".join(texts)) for (sender, recipient), texts in pairs.items()]


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join('' if cell is None else str(cell) for cell in line)} |" for line in lines)


def _what(what: str, note: str | None) -> str:
    return f"{what} ({plain(note)})" if note else what


def _when(at: datetime | None) -> str:
    return "not known" if at is None else moment(at)


def _device(device: DeviceRef | None) -> str:
    return "not readable" if device is None else f"{_code(device.user_id)} {_code(device.device_id)}"


def _code(text: str) -> str:
    """Give a stranger's text as code: it neither calls somebody by name nor breaks out of its cell."""
    return f"`{plain(text).replace('`', 'ʼ').replace('|', chr(92) + '|')}`"
