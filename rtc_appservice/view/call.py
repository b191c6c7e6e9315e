"""Stage 7: one call for a reader: its timeline, and the matrix of who owed whom a key and what came of it."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from io import StringIO

import msgspec
from rich.console import Console
from rich.text import Text

from rtc_appservice.core.explain import CallExplanation, OwedKey, TimelineEntry
from rtc_appservice.core.words import Outcome
from rtc_appservice.view.report import new_table, print_call
from rtc_appservice.view.words import clock, device_name, plain, precise

#: One letter an outcome, for the cells of the matrix.
LETTERS = {
    Outcome.DELIVERED: "D",
    Outcome.LATE: "L",
    Outcome.ROOM_EVENT: "R",
    Outcome.RECOVERED_BY_ROOM_EVENT: "r",
    Outcome.MISSING: "M",
    Outcome.EXCUSED: "e",
    Outcome.UNCONFIRMED: "?",
    Outcome.UNOBSERVABLE: "-",
    Outcome.PENDING: ".",
}


def render_call_json(told: CallExplanation) -> bytes:
    """Give a call as JSON: `call` as in a report, `timeline`, and `owed`, every obligation."""
    return msgspec.json.format(msgspec.json.encode(told), indent=2)


def render_call_text(told: CallExplanation, *, width: int = 120) -> str:
    """Give a call as text of at most `width` columns: facts, timeline, matrix, and what was not delivered."""
    out = StringIO()
    console = Console(file=out, width=width, force_terminal=False, highlight=False, markup=False)
    print_call(console, 1, told.call)
    _print_timeline(console, told.timeline)
    _print_matrix(console, told.owed)
    _print_undelivered(console, told.owed)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line.rstrip() for line in out.getvalue().splitlines())).rstrip() + "\n"


def _print_timeline(console: Console, timeline: Sequence[TimelineEntry]) -> None:
    rows = new_table("at", "what happened", "device", "evidence")
    for entry in timeline:
        who = "not readable" if entry.device is None else device_name(entry.device)
        rows.add_row(precise(entry.at), Text(_what(entry)), Text(who), entry.evidence or "")
    console.print(rows)


def _what(entry: TimelineEntry) -> str:
    note = f" ({plain(entry.note)})" if entry.note and entry.note != entry.what else ""
    if entry.what == "key_distributed":
        index = "" if entry.key_index is None else f" {entry.key_index}"
        way = "in the room" if entry.key_transport == "room_event" else f"by to-device to {entry.recipients}"
        return f"sent key{index} {way}{note}"
    if entry.what == "finding":
        return f"finding: {plain(entry.note or '')}"
    return f"{entry.what}{note}"


def _print_matrix(console: Console, owed: Sequence[OwedKey]) -> None:
    """One row a sender, one column a recipient, a letter for each key owed, in order of time."""
    if not owed:
        return
    devices = sorted({device_name(key.sender) for key in owed} | {device_name(key.recipient) for key in owed})
    cells: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in owed:
        cells[(device_name(key.sender), device_name(key.recipient))].append(LETTERS[key.outcome])
    matrix = new_table("owed by \\ to", *(plain(device) for device in devices))
    for sender in devices:
        matrix.add_row(plain(sender), *(" ".join(cells[(sender, recipient)]) for recipient in devices))
    console.print(matrix)
    used = Counter(key.outcome for key in owed)
    console.print("  " + ", ".join(f"{letter} {outcome.value}" for outcome, letter in LETTERS.items() if used[outcome]))


def _print_undelivered(console: Console, owed: Sequence[OwedKey]) -> None:
    """List the keys that were owed and not seen to arrive by to-device, with what is known instead."""
    settled = (Outcome.DELIVERED, Outcome.LATE, Outcome.EXCUSED)
    left = [key for key in owed if key.outcome not in settled]
    if not left:
        return
    rows = new_table("owed at", "by", "to", "because of a", "outcome")
    for key in left:
        outcome = key.outcome.value if key.met_at is None else f"{key.outcome.value} at {clock(key.met_at)}"
        names = (Text(device_name(key.sender)), Text(device_name(key.recipient)))
        rows.add_row(clock(key.owed_at), *names, key.moment, f"{outcome} ({key.evidence.value})")
    console.print(rows)
