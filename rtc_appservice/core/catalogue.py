"""
Stage 5: what every finding and cause means, in words: the rule, what it rests on, and what it does not mean.

`docs/detection.md` is written from this, and a test holds each named recording to showing what it is named for.
"""

from msgspec import Struct

from rtc_appservice.core.fallback import WITH_JOIN
from rtc_appservice.core.words import FallbackCause, FindingKind, GapReason, Outcome

_WITH_JOIN = f"{WITH_JOIN.total_seconds():g} s"


class Meaning(Struct, frozen=True, kw_only=True):
    """One kind of detection in words."""

    rule: str
    rests_on: str
    does_not_mean: str
    #: A recorded call (tests/data/recordings) that shows it; None where no recording does.
    recording: str | None = None


CAUSES: dict[FallbackCause, Meaning] = {
    FallbackCause.STRAY: Meaning(
        rule="The device has no stint in the slot: not live, none within 10 s after, none ended within 24 h.",
        rests_on="the room key event and the memberships seen",
        does_not_mean="that the key was used. Anyone in the room can send one, and so force smart clients to switch.",
    ),
    FallbackCause.AFTER_LEAVE: Meaning(
        rule="The device's first room key of the call came after its stint had ended, within 24 h.",
        rests_on="the room key event and the stint's end",
        does_not_mean="a fault: js-sdk from 37.11 on goes on sending keys after leaving. Not a blocker.",
    ),
    FallbackCause.FOLLOWED: Meaning(
        rule=(
            "Another device's room key came first, and this device shows signs of to-device: a to-device key of its "
            f"own, the padded form, or it had been in the call for more than {_WITH_JOIN} when its first room key came."
        ),
        rests_on="the earlier room key (`caused_by`), deliveries, the base64 form",
        does_not_mean="that this client needs the backup: without the device it followed it would have stayed silent.",
        recording="smart-switch",
    ),
    FallbackCause.GAVE_UP: Meaning(
        rule=(
            "Nobody's room key came before it, and the device distributed by to-device earlier in this call, or in "
            "another within 30 days."
        ),
        rests_on="the room key event, its own deliveries, its history",
        does_not_mean="that its to-device keys were lost: only that it stopped trusting them.",
    ),
    FallbackCause.HOST_CANNOT_SEND: Meaning(
        rule="Nobody's room key came before it, and its keys are padded: the newer manager, which prefers to-device.",
        rests_on="the base64 form of the room key",
        does_not_mean="a fault of Element Call: the host it is embedded in lacks to-device support.",
    ),
    FallbackCause.ROOM_ONLY_CLIENT: Meaning(
        rule=(
            f"Unpadded keys, or no `sent_ts`, or several keys in one event; the first within {_WITH_JOIN} of its own "
            "join; no sign of to-device in the call."
        ),
        rests_on="the room key event and its moment; sealed, a host that refuses looks the same",
        does_not_mean="a wrong setting for certain: js-sdk before 37.4 knows nothing else, later ones may have it off.",
        recording="legacy-only",
    ),
    FallbackCause.UNKNOWN: Meaning(
        rule=(
            "What was seen does not decide. `candidates` names what remains: the beginning was not seen, or an "
            "unpadded key came while room keys were flowing and envelopes were not shown."
        ),
        rests_on="the room key event",
        does_not_mean="a cause beyond those named here.",
    ),
}

FINDINGS: dict[FindingKind, Meaning] = {
    FindingKind.FALLBACK: Meaning(
        rule="A device sent its first room key of a call (one per device stint; later ones add to its count).",
        rests_on="its room keys",
        does_not_mean="an error: it is designed behaviour. The cause says whether it stands in the way.",
        recording="smart-switch",
    ),
    FindingKind.KEY_NOT_RECEIVED: Meaning(
        rule="An obligation ended `missing` or `recovered_by_room_event`.",
        rests_on="a source that would have shown the key, or a room key within the horizon with such a cause",
        does_not_mean="mere absence of an envelope: Synapse skips some, so that alone is `unconfirmed`.",
    ),
    FindingKind.KEY_LATE: Meaning(
        rule="The first to-device key for a pair came after the grace and within the horizon, read by our own device.",
        rests_on="the delivery, from a source that loses none",
        does_not_mean="an obligation counted `late` by envelopes alone: an earlier one may have been skipped.",
    ),
    FindingKind.NOT_ROTATED: Meaning(
        rule="Somebody left, and a staying sender in room mode sent no new key within the horizon, others present.",
        rests_on="silence in a readable timeline",
        does_not_mean="that the leaver listened: only that it could have.",
    ),
    FindingKind.SPLIT_CALL: Meaning(
        rule=(
            "`transport_split`: A is in room mode; B, live at its room key, sent none for 5 s and distributes by "
            "to-device. `dialect_split`: two sticky memberships of different js-sdk dialects."
        ),
        rests_on="room keys and deliveries, or the dialects of the memberships",
        does_not_mean="lost messages: on the wire everything arrives.",
        recording="modern-meets-legacy",
    ),
    FindingKind.KEY_IN_CLEAR: Meaning(
        rule="A media key the server could read: a room key in an unencrypted room, or to-device without Olm.",
        rests_on="the event itself",
        does_not_mean="that the service kept it: index, length and form are all that is stored.",
        recording="legacy-only",
    ),
    FindingKind.KEY_REUSED: Meaning(
        rule="A device sent the key it had sent before under another index: a rotation that did not rotate.",
        rests_on="equal comparison tags",
        does_not_mean="a resend: the same key under the same index is one.",
    ),
    FindingKind.INDEX_REGRESSED: Meaning(
        rule="A new key came under a lower index than one before in the same stint, not by wrapping at 16 or 256.",
        rests_on="indexes and comparison tags",
        does_not_mean="the resend of an old key: js-sdk 36 does that when somebody joins during a rotation.",
    ),
    FindingKind.STRAY_KEY: Meaning(
        rule=(
            "A room key of a device without any stint in the slot. Where no call goes on in the slot, it is a finding "
            "of the room, if the room was watched long enough to know who was in a call."
        ),
        rests_on="the event and the memberships seen",
        does_not_mean="an attack for certain, but in a call one such event is enough to make all of it fall back.",
    ),
    FindingKind.CLAIMED_DEVICE_MISMATCH: Meaning(
        rule="A to-device key names another device than the one whose Olm key encrypted it.",
        rests_on="a to-device key read by a device of ours",
        does_not_mean="a forged user: the sender's user is certain, its device is a claim.",
    ),
    FindingKind.UNTRUSTED_SENDER_DEVICE: Meaning(
        rule="A to-device key came from a device its user has not cross-signed.",
        rests_on="a to-device key read by a device of ours, and `/keys/query`",
        does_not_mean="that receivers refused it: js-sdk takes such keys, strict receivers do not.",
    ),
    FindingKind.ROTATION_STORM: Meaning(
        rule="Within 60 s a device distributed 10 times more than joins, refreshes and leaves asked for.",
        rests_on="its distributions, resends left out",
        does_not_mean="a wrong key: it costs traffic and rate limits.",
    ),
    FindingKind.KEY_READABLE_IN_HISTORY: Meaning(
        rule="Room key events stand in room history (one per sender and day, counted).",
        rests_on="the events; redactions close the ledger's rows, not the finding",
        does_not_mean="that everybody can read them: in an encrypted room, those who hold the Megolm session.",
        recording="legacy-only",
    ),
    FindingKind.FORGED_MEMBERSHIP: Meaning(
        rule=(
            "The state key of a membership names another user than its sender. One that came too late to open a call "
            "is a finding of the room."
        ),
        rests_on="the event",
        does_not_mean="that clients were fooled: they take the sender for the member.",
    ),
    FindingKind.MALFORMED: Meaning(
        rule="RTC events whose content clients would ignore (one per sender and day, with the fields at fault).",
        rests_on="the events",
        does_not_mean="an attack: an unknown dialect looks the same.",
    ),
    FindingKind.FLOOD: Meaning(
        rule=(
            "More than 1,000 findings in one room on one day (UTC), those of all its calls and of the room itself; the "
            "first 1,000 by time are told, and this one stands for the rest (`suppressed`)."
        ),
        rests_on="the number of findings suppressed; it has their weakest grade",
        does_not_mean="that nothing else happened: fallbacks, obligations and the history ledger count all of it.",
    ),
}

OUTCOMES: dict[Outcome, str] = {
    Outcome.DELIVERED: "a to-device key for the pair was seen within the grace",
    Outcome.LATE: "… after the grace, within the horizon",
    Outcome.ROOM_EVENT: "the sender was in room mode when it was owed, or can use nothing else; the fallback says why",
    Outcome.RECOVERED_BY_ROOM_EVENT: "no to-device key, a room key within the horizon",
    Outcome.MISSING: "both stayed, the horizon passed, and a source that would have shown the key did not",
    Outcome.EXCUSED: "gone before the grace ended, or keys are not managed in this call",
    Outcome.UNCONFIRMED: "only envelopes could have shown it, and none did",
    Outcome.UNOBSERVABLE: (
        "the recipient is on another homeserver, to-device envelopes are not shown, or a gap lies in the time"
    ),
    Outcome.PENDING: "not due yet",
}

#: What happened, and what is decided by it.
GAPS: dict[GapReason, str] = {
    GapReason.SERVICE_DOWN: (
        "no instance of the service ran. Who was in calls then is known for certain 4 h later, or once the state of the"
        " room was read: calls that begin before that have no `beginning_seen`. Keys owed in it are `unobservable`"
        " unless they were seen"
    ),
    GapReason.DATABASE_DOWN: "the database took nothing; the same holds",
    GapReason.TO_DEVICE_LOST: (
        "to-device messages may have been lost: Synapse hands them over once, and drops those it cannot. Room events it"
        " sends again, so memberships and room keys were seen. Keys owed in it are `unobservable` unless they were seen"
    ),
    GapReason.BACKLOG: (
        "the homeserver was behind: what was sent in that time came more than 60 s later. Nothing is lost by it, and"
        " events count at the time they were sent at. To-device messages carry no such time, so keys owed in it are"
        " `unobservable` unless they were seen in time. A homeserver whose clock is a minute slow looks the same, and"
        " an event that a bridge dates back, where no other came for a minute, until the next one"
    ),
    GapReason.UNDECRYPTABLE: (
        "what came for the device of the service could not be read: keys owed in it are `unobservable` unless they were"
        " seen. Of a room: events stayed sealed, which the coverage of its calls tells"
    ),
    GapReason.ROOM_JOINED_LATE: (
        "the room was encrypted before the device of the service came, and what was sealed until then was not read."
        " Only sealed events are hidden by it: the device finds the memberships in the state of the room"
    ),
}
