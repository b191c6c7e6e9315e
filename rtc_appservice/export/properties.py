"""
Stage 6: the properties of every PostHog event, one closed struct per event.

The structs are the allow-list: a row is checked against its struct when it is written, so nothing that
is not described here can leave. `schemas/*.json` and `docs/events.md` are generated from them. Values
are the words of `core/words.py`; identifiers appear as pseudonyms only.
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from rtc_appservice.core.undecryptable import UndecryptableReason, WithheldCode
from rtc_appservice.core.words import Coverage, Evidence, FallbackCause, KeyTransport, MembershipMode, Severity, Verdict
from rtc_appservice.export.pseudonym import DIGITS

#: Goes up when a property changes its meaning or leaves.
SCHEMA_VERSION = 1


def _count(description: str) -> Any:
    return Meta(ge=0, description=description)


def _text(description: str) -> Any:
    return Meta(description=description)


def _constant(value: bool, description: str) -> Any:
    return Meta(description=description, extra_json_schema={"const": value})


_Pseudonym = Annotated[str, Meta(pattern=f"^[0-9a-f]{{{DIGITS}}}$")]
_EvidenceGrade = Annotated[
    Evidence, _text("How this is known, strongest first: direct, decrypted, inferred, reported.")
]
_Generation = Annotated[
    str, Meta(pattern="^([RSD][0-9]?|unknown)$", description="Generation of the client by its behaviour.")
]


class Common(Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """Properties of every event."""

    homeserver: Annotated[str, _text("Name of the homeserver of the operator at which this was seen.")]
    app_version: Annotated[str, _text("Version of rtc-appservice.")]
    schema_version: Annotated[int, Meta(ge=1, description="Version of the meaning of these properties.")] = (
        SCHEMA_VERSION
    )
    process_person_profile: Annotated[bool, _constant(False, "Always false: the event is anonymous.")] = field(
        default=False, name="$process_person_profile"
    )
    ignore_sent_at: Annotated[
        bool, _constant(True, "Always true: `timestamp` is stored as given, on every resend.")
    ] = field(default=True, name="$ignore_sent_at")
    geoip_disable: Annotated[bool, _constant(True, "Always true: the address of the sender says nothing.")] = field(
        default=True, name="$geoip_disable"
    )


class OfCall(Common, frozen=True, kw_only=True):
    """Properties of every event about one call session; its `distinct_id` is the call's pseudonym."""

    room: Annotated[_Pseudonym, _text("Pseudonym of the room, stable within one deployment.")]
    is_federated: Annotated[bool, _text("A participant seen so far is of another homeserver.")]
    is_encrypted_room: Annotated[bool | None, _text("The room is encrypted; null if that was not seen.")]
    membership_mode: Annotated[MembershipMode, _text("How the call is joined, in Element Call's terms.")]


class RtcCallStarted(OfCall, frozen=True, kw_only=True):
    """A call session appeared. Sent once; `timestamp` is when its first membership began."""

    is_beginning_seen: Annotated[bool, _text("The room was watched when the call began.")]


class RtcCallEnded(OfCall, frozen=True, kw_only=True):
    """A call session ended, and nothing still due can change this. Sent once; `timestamp` is its end."""

    is_beginning_seen: Annotated[bool, _text("The room was watched when the call began.")]
    duration_seconds: Annotated[float, _count("From the first membership's begin to the last one's end.")]
    verdict: Annotated[Verdict, _text("How the media keys of the call travelled.")]
    evidence: Annotated[Evidence, _text("Grade of the weakest fact the verdict needs.")]
    coverage: Annotated[list[Coverage], _text("What could be seen of the call.")]
    max_participants: Annotated[int, _count("Most devices in the call at one moment.")]
    participants: Annotated[int, _count("Devices that took part.")]
    distributions_room_event: Annotated[int, _count("Media keys handed out as room events, resends included.")]
    distributions_to_device: Annotated[int, _count("Media keys handed out by to-device, resends included.")]
    resends: Annotated[int, _count("How many of these distributions repeated a media key.")]
    deliveries_to_device: Annotated[int, _count("To-device deliveries found, one per recipient device.")]
    obligations_delivered: Annotated[int, _count("Media keys owed by to-device that came in time.")]
    obligations_late: Annotated[int, _count("Owed media keys that came by to-device, but late.")]
    obligations_room_event: Annotated[int, _count("Owed media keys whose sender was using room events by then.")]
    obligations_recovered_by_room_event: Annotated[int, _count("Owed media keys that only a room event brought.")]
    obligations_missing: Annotated[int, _count("Owed media keys that did not come at all.")]
    obligations_excused: Annotated[int, _count("Owed media keys with a good reason not to come.")]
    obligations_unconfirmed: Annotated[int, _count("Owed media keys of which no envelope was seen: not known.")]
    obligations_unobservable: Annotated[int, _count("Owed media keys that could not have been seen: not known.")]
    fallbacks: Annotated[int, _count("Devices that used room events for their media key.")]
    blockers: Annotated[int, _count("Devices among them that stand in the way of switching room events off.")]
    keys_undecryptable: Annotated[
        int, _count("What may have been media keys, and the service's own device could not open when it came.")
    ]
    is_sampled: Annotated[bool, _text("Its `RtcKeyDistributed` events are sent; false: sampling left them out.")]


class RtcKeyDistributed(OfCall, frozen=True, kw_only=True):
    """
    One device handed out a media key once, by one key transport. Sent when the call has settled.

    Sampled by whole calls: of a call, all are sent or none. Weight each by 1 / `sampleRate`.
    """

    key_transport: Annotated[KeyTransport, _text("The way the media key travelled.")]
    device: Annotated[_Pseudonym | None, _text("Pseudonym of the sending device; null if not known.")]
    key_index: Annotated[int | None, _text("Index of the media key; null if it could not be read.")]
    recipients: Annotated[int, _count("To-device: deliveries seen. Room event: other participants present.")]
    is_resend: Annotated[bool, _text("The same media key was handed out before.")]
    is_after_leave: Annotated[bool, _text("The device had left the call.")]
    sample_rate: Annotated[float, Meta(gt=0, le=1, description="Share of the calls whose distributions are sent.")]
    evidence: _EvidenceGrade


class RtcKeyFallback(OfCall, frozen=True, kw_only=True):
    """A device used room events for its media key. Sent once per device and stay in a call."""

    cause: Annotated[FallbackCause, _text("Why.")]
    is_blocker: Annotated[bool, _text("This stands in the way of switching room events off.")]
    device: Annotated[_Pseudonym | None, _text("Pseudonym of the device that fell back; null if not known.")]
    user: Annotated[_Pseudonym | None, _text("Pseudonym of its user; null if not known.")]
    caused_by: Annotated[_Pseudonym | None, _text("Pseudonym of the device this one followed; null if none.")]
    candidates: Annotated[list[FallbackCause], _text("The causes that remain where none could be decided.")]
    room_keys: Annotated[int, _count("Room key events of this device in the call.")]
    generation: _Generation
    was_key_private: Annotated[
        bool | None, _text("The very media key had been sent over Olm before; null if not comparable.")
    ]
    confidence: Annotated[float, Meta(ge=0, le=1, description="Confidence in the cause.")]
    evidence: _EvidenceGrade


class RtcKeyNotReceived(OfCall, frozen=True, kw_only=True):
    """
    A media key owed by to-device did not come by to-device. Sent exactly once per obligation that ended so.

    An obligation is one device owing one other device a media key, because somebody joined or left.
    """

    outcome: Annotated[Literal["recovered_by_room_event", "missing"], _text("How the obligation ended.")]
    covered_by: Annotated[Literal["room_event"] | None, _text("What brought it instead; null if nothing did.")]
    device: Annotated[_Pseudonym | None, _text("Pseudonym of the device that owed the media key; null if not known.")]
    recipient: Annotated[_Pseudonym | None, _text("Pseudonym of the device it was owed to; null if not known.")]
    moment: Annotated[Literal["join", "leave"] | None, _text("What made the media key due; null if not known.")]
    waited_seconds: Annotated[
        float | None,
        _text("From when it was owed until what covered it came; below 0 if that overtook the join; null if nothing."),
    ]
    severity: Annotated[Severity, _text("How urgent this is.")]
    evidence: _EvidenceGrade


class RtcKeyUndecryptable(OfCall, frozen=True, kw_only=True):
    """
    What may have been a media key, and the service's own device could not open when it came.

    Sent when the call has settled, for the first 100 of a call; `keysUndecryptable` of `RtcCallEnded` counts all.
    """

    key_transport: Annotated[KeyTransport, _text("The way it came.")]
    reason: Annotated[UndecryptableReason, _text("Why it could not be opened.")]
    withheld_code: Annotated[
        WithheldCode | None, _text("Why its sender keeps the Megolm session from the device; null if nothing was said.")
    ]
    was_opened_later: Annotated[
        bool, _text("It was opened before the call settled, and was a media key; what was none is not sent.")
    ]
    opened_after_seconds: Annotated[
        Annotated[float, Meta(ge=0)] | None, _text("From its own time until it was opened; null if it was not.")
    ]
    device: Annotated[_Pseudonym, _text("Pseudonym of the sending device, or of the likeliest one of its user.")]
    user: Annotated[_Pseudonym, _text("Pseudonym of its user.")]
    generation: _Generation
    evidence: _EvidenceGrade


class RtcSplitCall(OfCall, frozen=True, kw_only=True):
    """Two participants cannot get each other's media keys although both send. Sent once per call and device."""

    device: Annotated[_Pseudonym | None, _text("Pseudonym of one side of the split; null if not known.")]
    other_device: Annotated[_Pseudonym | None, _text("Pseudonym of its other side; null if not known.")]
    split: Annotated[
        Literal["transport_split", "dialect_split"] | None, _text("What parts the two; null if not known.")
    ]
    severity: Annotated[Severity, _text("How urgent this is.")]
    evidence: _EvidenceGrade


class RtcAuditorReport(Common, frozen=True, kw_only=True):
    """How the auditor itself is doing, hourly per process and homeserver."""

    calls_active: Annotated[int, _count("Call sessions going on.")]
    rooms_watched: Annotated[int, _count("Rooms in which MatrixRTC was seen.")]
    outbox_pending: Annotated[int, _count("Events waiting to be sent, of all homeservers.")]
    outbox_oldest_age_seconds: Annotated[float, _count("Time the oldest event waiting has waited; 0 if none waits.")]
    gaps: Annotated[int, _count("Gaps recorded in the last 28 days.")]
    uptime_seconds: Annotated[float, _count("Since this process started.")]


#: Every event this service sends. The name of the struct is the name of the event.
EVENTS: tuple[type[Common], ...] = (
    RtcCallStarted,
    RtcCallEnded,
    RtcKeyDistributed,
    RtcKeyFallback,
    RtcKeyNotReceived,
    RtcKeyUndecryptable,
    RtcSplitCall,
    RtcAuditorReport,
)


def checked(properties: Common) -> dict[str, Any]:
    """
    Give the properties as they are stored and sent, after checking each value against its struct.

    Raises:
        msgspec.ValidationError: a value is not of the described form; nothing of it may leave.
    """
    plain: dict[str, Any] = msgspec.to_builtins(properties)
    msgspec.convert(plain, type(properties))
    return plain


def json_schema(event: type[Common]) -> dict[str, Any]:
    """Give the closed JSON Schema of an event's properties; all of them are always sent."""
    _, definitions = msgspec.json.schema_components((event,), ref_template="#/$defs/{name}")
    schema = definitions.pop(event.__name__)
    for described in schema["properties"].values():
        described.pop("default", None)
    schema["required"] = list(schema["properties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "$defs": definitions}
