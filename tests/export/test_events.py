"""What a call becomes in PostHog: closed, described, pseudonymous, and the same each time."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # an independent reading of our schemas
import msgspec
import pytest

from rtc_appservice.core.audit import audit
from rtc_appservice.core.model import CallSession
from rtc_appservice.core.words import CallId, FindingKind, ServerName
from rtc_appservice.export import docs
from rtc_appservice.export.events import Terms, auditor_rows, event_maker, outbox_rows
from rtc_appservice.export.properties import EVENTS, RtcCallStarted, checked
from rtc_appservice.export.pseudonym import DIGITS, Pseudonyms, period
from rtc_appservice.recording import read_recordings
from rtc_appservice.store.outbox import OutboxRow, Pending
from rtc_appservice.store.standing import HomeserverStanding, Standing

from ..fleet.plans import play
from ..fleet.test_fleet import audited
from .projected_call import BOB, IDENTIFIERS, START, at, finding, make_call

SECRET = b"a deployment secret"
TERMS = Terms(secret=SECRET, app_version="1.2.3")


def every_row() -> list[OutboxRow]:
    """Give a row of every event."""
    call = make_call()
    standing = Standing(
        homeservers=(HomeserverStanding(homeserver=ServerName("example.org"), calls_active={"mixed": 2}, gaps=1),),
        outbox=Pending(pending=3, dead=0, oldest_at=START),
    )
    reports = auditor_rows(standing, terms=TERMS, process="p", started_at=START, now=START + timedelta(minutes=1))
    rows = outbox_rows(call, call.report.findings, first_time=True, terms=TERMS)
    return [*rows, *reports]


def schema(event: str) -> dict[str, Any]:
    """Give the schema of an event as it is shipped."""
    loaded: dict[str, Any] = json.loads((docs.SCHEMAS / f"{event}.json").read_text())
    return loaded


def test_which_rows() -> None:
    """A call gives one row for its start, its end, each distribution and each settled finding PostHog is told of."""
    assert Counter(row.event for row in every_row()) == {
        "RtcCallStarted": 1,
        "RtcCallEnded": 1,
        "RtcKeyDistributed": 3,
        "RtcKeyFallback": 2,
        "RtcKeyNotReceived": 1,
        "RtcKeyUndecryptable": 2,
        "RtcSplitCall": 1,
        "RtcAuditorReport": 1,
    }


def test_a_call_that_goes_on() -> None:
    """Before it settles a call tells of its start, once, and of findings as they settle."""
    make = event_maker(TERMS)
    call = make_call(settled=False)

    assert [row.event for row in make(call, (), True)] == ["RtcCallStarted"]
    assert [row.event for row in make(call, call.report.findings[:1], False)] == ["RtcKeyFallback"]
    assert list(make(call, (), False)) == []


def test_every_event_is_valid_and_has_a_closed_schema() -> None:
    """Each row fits the shipped schema; each schema is closed, complete and described; none is without a row."""
    rows = every_row()

    assert {row.event for row in rows} == {event.__name__ for event in EVENTS}
    for row in rows:
        jsonschema.Draft202012Validator(schema(row.event)).validate(row.properties)
    for event in EVENTS:
        shipped = schema(event.__name__)
        jsonschema.Draft202012Validator.check_schema(shipped)
        assert shipped["additionalProperties"] is False
        assert shipped["required"] == list(shipped["properties"])
        assert shipped["description"]
        for described in shipped["properties"].values():
            assert described["description"]


KEY = FindingKind.KEY_NOT_RECEIVED
RECORDINGS = Path(__file__).parents[1] / "data" / "recordings"


@pytest.mark.parametrize("recording", sorted(RECORDINGS.rglob("transactions.jsonl")), ids=lambda file: file.parent.name)
def test_genuine_calls_give_valid_events(recording: Path) -> None:
    """Whatever detection says of genuine calls fits the schemas: a misfit would hold up the room's projection."""
    report = audit(read_recordings([str(recording)]), homeserver=None, scope="auto", secret=SECRET)
    assert report.calls
    for call in report.calls:
        session = CallSession(
            report=msgspec.structs.replace(call, settled=True), distributions=(), stints=(), to_device_seen=()
        )
        rows = outbox_rows(session, call.findings, first_time=True, terms=TERMS)
        for row in rows:
            jsonschema.Draft202012Validator(schema(row.event)).validate(row.properties)
        unmet = call.obligations.recovered_by_room_event + call.obligations.missing
        assert unmet == sum(row.event == "RtcKeyNotReceived" for row in rows)
        users = {participant.user_id for participant in call.participants}
        sent = msgspec.json.encode(rows).decode()
        assert not [name for name in (*users, call.room_id, call.call_id) if name in sent]


def test_one_event_per_unmet_obligation() -> None:
    """In played calls whose hosts fail, each key owed by to-device that a room event had to bring is one event."""
    told = 0
    for seed in range(60):
        played = play(seed, rough=False)
        if "host" not in played.traits:
            continue
        for call in audited(played).calls:
            session = CallSession(report=call, distributions=(), stints=(), to_device_seen=())
            settled = [one for one in call.findings if one.settled]
            rows = [
                row
                for row in outbox_rows(session, settled, first_time=False, terms=TERMS)
                if row.event == "RtcKeyNotReceived"
            ]
            outcomes = Counter(row.properties["outcome"] for row in rows)
            assert outcomes["recovered_by_room_event"] == call.obligations.recovered_by_room_event
            assert outcomes["missing"] == call.obligations.missing
            assert len({row.uuid for row in rows}) == len(rows)
            for row in rows:
                jsonschema.Draft202012Validator(schema(row.event)).validate(row.properties)
                assert row.properties["device"] != row.properties["recipient"]
                assert row.properties["coveredBy"] == "room_event"
                assert row.properties["waitedSeconds"] <= 60
            told += len(rows)

    assert told > 0


def test_every_event_is_anonymous() -> None:
    """No person profile, no place of the sender, and the timestamp stays as given."""
    for row in every_row():
        assert row.properties["$process_person_profile"] is False
        assert row.properties["$ignore_sent_at"] is True
        assert row.properties["$geoip_disable"] is True


def test_no_identifier_leaves() -> None:
    """Neither names, rooms, devices, calls nor event ids are in what is sent, nor the server of a guest."""
    sent = msgspec.json.encode(every_row()).decode()

    assert [word for word in IDENTIFIERS if word in sent] == []
    assert "example.org" in sent  # the operator's own homeserver: the search above can find something


def test_what_is_not_described_does_not_leave() -> None:
    """A value that does not fit its description is refused when the row is made."""
    event = RtcCallStarted(
        homeserver="example.org",
        app_version="1",
        room="!room:example.org",
        is_federated=False,
        is_encrypted_room=None,
        membership_mode=make_call().report.membership_mode,
        is_beginning_seen=True,
    )

    with pytest.raises(msgspec.ValidationError):
        checked(event)


def test_same_call_same_rows() -> None:
    """Made again, a row has the same uuid, timestamp, distinct_id and properties; no two rows share a uuid."""
    first, second = every_row(), every_row()

    assert first == second
    assert len({row.uuid for row in first}) == len(first)
    assert {row.uuid.version for row in first} == {5}


def test_one_distinct_id_per_call() -> None:
    """All events of a call share the call's pseudonym, so that unique users are unique calls."""
    assert {row.distinct_id for row in every_row() if row.event != "RtcAuditorReport"} == {
        f"call:{Pseudonyms(SECRET).call('call-in-clear')}"
    }


def test_call_ended() -> None:
    """The summary of a call counts what its report counts."""
    (ended,) = (row for row in every_row() if row.event == "RtcCallEnded")

    assert ended.timestamp == at(90.5)
    shown = ended.properties
    assert shown["durationSeconds"] == 90.5
    assert (shown["verdict"], shown["evidence"]) == ("mixed", "inferred")
    assert (shown["fallbacks"], shown["blockers"]) == (2, 1)
    assert (shown["distributionsRoomEvent"], shown["distributionsToDevice"]) == (2, 1)
    assert (shown["obligationsRoomEvent"], shown["obligationsUnconfirmed"]) == (1, 2)
    assert shown["isFederated"] is True


def test_fallbacks_name_who_caused_them() -> None:
    """A follower's event carries the pseudonym of the device it followed, which is that device's own."""
    first, second = (row.properties for row in every_row() if row.event == "RtcKeyFallback")

    assert (first["cause"], first["isBlocker"], first["causedBy"]) == ("room_only_client", True, None)
    assert (second["cause"], second["isBlocker"], second["causedBy"]) == ("followed", False, first["device"])
    assert (first["generation"], second["generation"]) == ("R", "S3")


def test_key_not_received() -> None:
    """The event says what was owed to whom, and how it ended."""
    (row,) = (row for row in every_row() if row.event == "RtcKeyNotReceived")

    assert (row.properties["outcome"], row.properties["moment"]) == ("recovered_by_room_event", "join")
    assert row.properties["waitedSeconds"] == 1.5
    assert row.properties["recipient"] != row.properties["device"]


def test_pseudonyms_have_spaces_of_their_own() -> None:
    """The same text as room, user, device and call gives four pseudonyms; another secret gives others."""
    one, other = Pseudonyms(b"one"), Pseudonyms(b"other")

    made = {one.room("x"), one.user("x"), one.device("x", "x"), one.call("x"), one.auditor("x")}
    assert len(made) == 5
    assert {len(pseudonym) for pseudonym in made} == {DIGITS}
    assert one.device("a", "bc") != one.device("ab", "c")
    assert one.room("x") == Pseudonyms(b"one").room("x") != other.room("x")
    assert one.uuid("E", "k") != other.uuid("E", "k")


def test_an_unmet_obligation_says_what_covered_it() -> None:
    """What the room event brought names it and how long it took; what nothing brought names neither."""
    details = {"recipient": {"user_id": "@a:b", "device_id": "A"}, "moment": "leave"}
    covered = finding(
        1, KEY, BOB, 3, outcome="recovered_by_room_event", covered_by="room_event", waited_seconds=1.5, **details
    )
    missing = finding(2, KEY, BOB, 4, outcome="missing", covered_by=None, waited_seconds=None, **details)

    rows = outbox_rows(make_call(settled=False), [covered, missing], first_time=False, terms=TERMS)

    shown = [tuple(row.properties[name] for name in ("outcome", "coveredBy", "waitedSeconds")) for row in rows]
    assert shown == [("recovered_by_room_event", "room_event", 1.5), ("missing", None, None)]
    assert len({row.uuid for row in rows}) == 2


def test_pseudonyms_rotate() -> None:
    """A new period, counted from a fixed day, gives rooms, users and devices new pseudonyms; a call keeps its own."""
    assert period(START, None) == ""
    assert period(START, 1) == "2026-11-23"
    assert period(START, 28) == period(START + timedelta(days=2), 28) != period(START + timedelta(days=28), 28)

    plain, one, next_one = Pseudonyms(SECRET), Pseudonyms(SECRET, "2026-11-09"), Pseudonyms(SECRET, "2026-12-07")
    every = (plain, one, next_one)
    assert len({each.room("x") for each in every}) == 3
    assert len({each.user("x") for each in every}) == 3
    assert len({each.device("x", "y") for each in every}) == 3
    assert plain.call("x") == one.call("x") == next_one.call("x")
    assert plain.uuid("E", "k") == one.uuid("E", "k") == next_one.uuid("E", "k")


def test_a_call_stays_in_the_period_of_its_start() -> None:
    """A call across midnight shows one pseudonym of its room, whenever its events are made."""
    call = make_call()
    start = START.replace(hour=23, minute=59)
    late = msgspec.structs.replace(
        call, report=msgspec.structs.replace(call.report, started_at=start, ended_at=start + timedelta(hours=2))
    )
    daily = msgspec.structs.replace(TERMS, pseudonym_rotation_days=1)

    def rooms(session: CallSession, terms: Terms) -> set[str]:
        rows = outbox_rows(session, session.report.findings, first_time=True, terms=terms)
        return {row.properties["room"] for row in rows}

    assert len(rooms(late, daily)) == 1
    assert rooms(late, daily) == rooms(call, daily) != rooms(call, TERMS)


def test_sampling_takes_whole_calls() -> None:
    """Of a call, all distributions are sent or none, the same each time; everything else is always sent."""
    terms = msgspec.structs.replace(TERMS, sample_rate=0.25)
    kept = 0
    for number in range(400):
        call = make_call()
        call = msgspec.structs.replace(call, report=msgspec.structs.replace(call.report, call_id=CallId(f"c{number}")))
        rows = outbox_rows(call, call.report.findings, first_time=True, terms=terms)
        names = Counter(row.event for row in rows)
        assert names.pop("RtcKeyDistributed", 0) in (0, 3)
        assert sum(names.values()) == 8
        assert {row.properties["sampleRate"] for row in rows if row.event == "RtcKeyDistributed"} <= {0.25}
        (ended,) = (row.properties for row in rows if row.event == "RtcCallEnded")
        assert ended["isSampled"] is (len(rows) > 8)
        assert rows == outbox_rows(call, call.report.findings, first_time=True, terms=terms)
        kept += len(rows) > 8

    assert 70 <= kept <= 130


def test_what_sampling_left_out_is_counted() -> None:
    """A settled call that is not in the sample tells how many events were not sent for it; no other call does."""
    left_out: list[int] = []
    for rate in (0.0, 1.0):
        make = event_maker(msgspec.structs.replace(TERMS, sample_rate=rate), observe_sampled_out=left_out.append)
        make(make_call(settled=False), (), True)
        make(make_call(), (), False)

    assert left_out == [3]


def test_keys_that_could_not_be_opened() -> None:
    """Each says why, what its sender said, whether and when it was opened, and who sent it; the call counts all."""
    rows = {row.event: row.properties for row in every_row()}
    never, later = (row.properties for row in every_row() if row.event == "RtcKeyUndecryptable")

    def shown(properties: Mapping[str, Any]) -> tuple[Any, ...]:
        names = ("reason", "withheldCode", "wasOpenedLater", "openedAfterSeconds", "generation", "evidence")
        return tuple(properties[name] for name in names)

    assert shown(never) == ("withheld", "m.unverified", False, None, "R", "inferred")
    assert shown(later) == ("missing_session", None, True, 2.5, "S3", "decrypted")
    assert never["device"] != later["device"]
    assert rows["RtcCallEnded"]["keysUndecryptable"] == 2


def test_keys_that_could_not_be_opened_are_bounded() -> None:
    """Of a call in which nothing can be opened, the first hundred are sent, and all are counted."""
    call = make_call()
    (one, _) = call.undecryptable
    many = tuple(
        msgspec.structs.replace(one, identity=f"$many{number}", at=at(number / 10)) for number in reversed(range(250))
    )
    rows = outbox_rows(
        msgspec.structs.replace(call, undecryptable=many), call.report.findings, first_time=True, terms=TERMS
    )
    (ended,) = (row.properties for row in rows if row.event == "RtcCallEnded")
    sent = [row.timestamp for row in rows if row.event == "RtcKeyUndecryptable"]

    assert [at(number / 10) for number in range(100)] == sent
    assert 250 == ended["keysUndecryptable"]


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 0), (1.0, 3)])
def test_sampling_all_or_nothing(rate: float, expected: int) -> None:
    """0 sends no distribution at all, 1 all of them."""
    rows = outbox_rows(make_call(), (), first_time=True, terms=msgspec.structs.replace(TERMS, sample_rate=rate))

    assert Counter(row.event for row in rows)["RtcKeyDistributed"] == expected


@pytest.mark.parametrize(
    "details",
    [
        {"outcome": "@alice:example.org"},
        {"outcome": ["missing"]},
        {},
        {"outcome": "missing", "recipient": "@alice:example.org"},
        {"outcome": "missing", "recipient": {"user_id": "@alice:example.org"}},
        {"outcome": "missing", "recipient": {"user_id": "\ud800", "device_id": ""}},
        {"outcome": "missing", "waited_seconds": "@alice:example.org"},
    ],
    ids=str,
)
def test_a_misfit_costs_its_own_row_only(details: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """A value no description allows drops one event, counted and logged without the value; all else is sent."""
    call = make_call()
    findings = [finding(9, KEY, BOB, 3, **details), *call.report.findings]
    dropped: list[str] = []

    rows = event_maker(TERMS, dropped.append)(call, findings, True)

    assert rows == outbox_rows(call, call.report.findings, first_time=True, terms=TERMS)
    assert dropped == ["RtcKeyNotReceived"]
    assert [(record.levelname, record.__dict__["event_name"]) for record in caplog.records] == [
        ("ERROR", "RtcKeyNotReceived")
    ]
    assert "alice" not in str(caplog.records[0].__dict__)


def test_generated_files_are_up_to_date() -> None:
    """`python -m rtc_appservice.export.docs` has been run since events or metrics changed."""
    for path, content in docs.files().items():
        assert path.read_text() == content, f"{path} differs: run `python -m rtc_appservice.export.docs`"
    assert {path.name for path in docs.SCHEMAS.iterdir()} == {f"{event.__name__}.json" for event in EVENTS}
