"""Stage 7: the words that reports and pages share: verdicts, causes and outcomes in plain language, names and times."""

from datetime import UTC, datetime, timedelta

from rtc_appservice.core import wording
from rtc_appservice.core.model import DeviceRef, Finding
from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import Coverage, Evidence, FallbackCause, GapReason, Outcome, Severity, Verdict

READINESS = wording.READINESS
moment = wording.moment
plain = wording.plain
VERDICTS = {
    Verdict.TO_DEVICE: "all media keys by to-device",
    Verdict.ROOM_EVENT: "all media keys by room events",
    Verdict.MIXED: "media keys by to-device and by room events",
    Verdict.NO_KEYS: "no media key by either way",
    Verdict.SOLO: "never two participants at once",
    Verdict.UNKNOWN: "too little was seen to tell",
}
CAUSES = {
    FallbackCause.STRAY: "sent a room key without being in the call",
    FallbackCause.AFTER_LEAVE: "had left the call; harmless",
    FallbackCause.FOLLOWED: "another device was first",
    FallbackCause.GAVE_UP: "could send by to-device, and gave it up",
    FallbackCause.HOST_CANNOT_SEND: "its host application cannot send to-device messages",
    FallbackCause.ROOM_ONLY_CLIENT: "its client can only use room events",
    FallbackCause.UNKNOWN: "cause not decidable",
}
OUTCOMES = {
    Outcome.DELIVERED: "by to-device, on time",
    Outcome.LATE: "by to-device, late",
    Outcome.ROOM_EVENT: "as room event",
    Outcome.RECOVERED_BY_ROOM_EVENT: "not by to-device; a room event came instead",
    Outcome.MISSING: "owed and missing",
    Outcome.EXCUSED: "had a reason not to come",
    Outcome.UNCONFIRMED: "not seen; may have arrived",
    Outcome.UNOBSERVABLE: "could not be seen",
    Outcome.PENDING: "not due yet",
}
COVERAGES = {
    Coverage.TIMELINE: "the room's timeline, all of it",
    Coverage.TIMELINE_PARTIAL: "the room's timeline, parts of it unreadable",
    Coverage.ENVELOPES: "envelopes of to-device messages",
    Coverage.WITNESS: "a device of ours in the call",
}
GAPS = {
    GapReason.SERVICE_DOWN: "the service was not running",
    GapReason.DATABASE_DOWN: "the database was away",
    GapReason.TO_DEVICE_LOST: "to-device messages may be lost",
    GapReason.UNDECRYPTABLE: "what came could not be decrypted",
    GapReason.ROOM_JOINED_LATE: "encrypted before the service's device came",
    GapReason.BACKLOG: "the homeserver was behind; events came late",
}
UNDECRYPTABLE = {
    UndecryptableReason.MISSING_SESSION: "without a session",
    UndecryptableReason.WITHHELD: "withheld by the sender",
    UndecryptableReason.BEFORE_SESSION: "from before the session it was given",
    UndecryptableReason.MEGOLM_FAILED: "that did not decrypt",
    UndecryptableReason.REPLAYED: "replayed",
    UndecryptableReason.WRONG_ROOM: "of another room",
    UndecryptableReason.WRONG_SENDER: "of another sender than their session",
    UndecryptableReason.MALFORMED: "malformed",
}
EVIDENCES = {
    Evidence.DIRECT: "read in clear",
    Evidence.DECRYPTED: "read after decryption by a device of ours",
    Evidence.INFERRED: "deduced from metadata or from absence",
    Evidence.REPORTED: "a client said so",
}
SEVERITIES = (Severity.CRITICAL, Severity.WARNING, Severity.INFO)


def device_name(device: DeviceRef) -> str:
    """Give a device as `user device`."""
    return f"{plain(device.user_id)} {plain(device.device_id)}".rstrip()


def count_of(finding: Finding) -> int:
    """Give how much a finding stands for."""
    return int(finding.details.get("count") or finding.details.get("suppressed") or 1)


def length(span: timedelta) -> str:
    """Give a length of time in its two largest units."""
    minutes, seconds = divmod(round(span.total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def clock(at: datetime) -> str:
    """Give the time of day, UTC."""
    return f"{at.astimezone(UTC):%H:%M:%S}"


def precise(at: datetime) -> str:
    """Give the time of day with milliseconds, UTC."""
    return f"{clock(at)}.{at.microsecond // 1000:03d}"
