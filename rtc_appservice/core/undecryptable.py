"""Stage 2: the words for what the service's own device could not open, and why."""

from enum import StrEnum


class UndecryptableReason(StrEnum):
    """Why a room event or a to-device message could not be opened when it came."""

    MISSING_SESSION = "missing_session"  #: its Megolm session had not been handed to the device
    WITHHELD = "withheld"  #: … and its sender had said that it is kept from the device
    BEFORE_SESSION = "before_session"  #: sent before the part of its Megolm session that the device was given
    MEGOLM_FAILED = "megolm_failed"
    REPLAYED = "replayed"  #: another event used the same place in its Megolm session
    WRONG_ROOM = "wrong_room"  #: what was inside is for another room
    NO_OLM_SESSION = "no_olm_session"  #: it goes on with an Olm session that the device does not have
    OLM_FAILED = "olm_failed"
    WRONG_RECIPIENT = "wrong_recipient"  #: what was inside is for another device
    WRONG_SENDER = "wrong_sender"  #: what was inside, or its Megolm session, is of another sender
    MALFORMED = "malformed"


class WithheldCode(StrEnum):
    """Why a sender keeps a Megolm session from a device: the codes of the Matrix specification."""

    BLACKLISTED = "m.blacklisted"
    UNVERIFIED = "m.unverified"
    UNAUTHORISED = "m.unauthorised"
    UNAVAILABLE = "m.unavailable"
    NO_OLM = "m.no_olm"
    HISTORY_NOT_SHARED = "m.history_not_shared"
    OTHER = "other"


def withheld_code(code: str) -> WithheldCode:
    """Give the code that a text from the wire is; `other` for one that the specification does not have."""
    return WithheldCode(code) if code in tuple(WithheldCode) else WithheldCode.OTHER
