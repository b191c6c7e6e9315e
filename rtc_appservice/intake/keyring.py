"""
Stage 2: what a device of ours can open: its Olm account, its Olm sessions, the Megolm sessions it was given.

It is changed by what it opens, in memory; what was changed is listed, to be written in the commit of the observations
that came of it, or to be forgotten with it. libolm's objects hold the secrets; of what they opened nothing stays here.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from olm.account import OlmAccountError
from olm.group_session import InboundGroupSession, OlmGroupSessionError
from olm.session import InboundSession, OlmMessage, OlmPreKeyMessage, OlmSessionError

from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import Device, RoomId, UserId
from rtc_appservice.intake.device_keys import SealedBy

#: A sender whose device forgot its session makes a new one; older than these none is used again.
MAX_OLM_SESSIONS = 10
#: A user can send under any number of keys; sessions beyond these, of the user's devices together, go.
MAX_OLM_SESSIONS_OF_USER = 1000


class CannotOpen(Exception):
    """A sealed event or message cannot be opened."""

    def __init__(self, reason: UndecryptableReason) -> None:
        """Take the reason."""
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, frozen=True)
class MegolmSession:
    """A Megolm session as it was handed to us: for a room, by a device of a user."""

    session: Any  #: olm.InboundGroupSession
    owner: UserId
    sender_key: str
    sealed_by: SealedBy


class Place(NamedTuple):
    """The event of a sender that used an index of a Megolm session first."""

    event_id: str
    at: datetime | None  #: `origin_server_ts`


@dataclass(slots=True)
class Changes:
    """What opening changed."""

    account: bool = False
    #: (sender, sender key, session id) -> olm.Session
    olm_sessions: dict[tuple[UserId, str, str], Any] = field(default_factory=dict)
    megolm_sessions: dict[tuple[RoomId, str, UserId], MegolmSession] = field(default_factory=dict)
    indices: dict[tuple[str, UserId, int], Place] = field(default_factory=dict)  #: by session id, sender, index
    messages: set[str] = field(default_factory=set)  #: hashes of the ciphertexts that were taken


@dataclass(slots=True)
class Keyring:
    """The keys of one device, or those of them that are needed just now."""

    device: Device
    account: Any  #: olm.Account
    olm_sessions: dict[str, list[Any]] = field(default_factory=dict)  #: by sender key, the newest first
    #: By room and session id, and then by who handed it over: whoever was given a session can hand it on.
    megolm_sessions: dict[tuple[RoomId, str], dict[UserId, MegolmSession]] = field(default_factory=dict)
    indices: dict[tuple[str, int], dict[UserId, Place]] = field(default_factory=dict)
    messages: set[str] = field(default_factory=set)
    changes: Changes = field(default_factory=Changes)

    @property
    def identity_key(self) -> str:
        """The device's Curve25519 key."""
        return str(self.account.identity_keys["curve25519"])

    @property
    def signing_key(self) -> str:
        """The device's Ed25519 key."""
        return str(self.account.identity_keys["ed25519"])

    def open_olm(self, sender: UserId, sender_key: str, olm_type: int, text: str) -> str:
        """Open an Olm message of a user; raises CannotOpen, and then nothing has changed."""
        try:
            if olm_type == 0:
                session, plaintext = self._open_pre_key(sender_key, OlmPreKeyMessage(text))
            else:
                session, plaintext = self._open_normal(sender_key, OlmMessage(text))
        except (OlmSessionError, ValueError):
            raise CannotOpen(UndecryptableReason.OLM_FAILED) from None
        self.changes.olm_sessions[(sender, sender_key, session.id)] = session
        return plaintext

    def _open_pre_key(self, sender_key: str, message: Any) -> tuple[Any, str]:
        for session in self.olm_sessions.get(sender_key, ()):
            if session.matches(message, sender_key):
                return session, str(session.decrypt(message))
        # The sender's key is compared afterwards: given it, libolm (3.2.16) reads address 0 if the message has none.
        session = InboundSession(self.account, message)
        if not session.matches(message, sender_key):
            raise CannotOpen(UndecryptableReason.OLM_FAILED)
        text = str(session.decrypt(message))
        # Only now: a message that cannot be opened uses up no one-time key.
        with suppress(OlmAccountError):  # the fallback key, which stays
            self.account.remove_one_time_keys(session)
            self.changes.account = True
        known = self.olm_sessions.setdefault(sender_key, [])
        known.insert(0, session)
        del known[MAX_OLM_SESSIONS:]
        return session, text

    def _open_normal(self, sender_key: str, message: Any) -> tuple[Any, str]:
        for session in self.olm_sessions.get(sender_key, ()):
            try:
                return session, str(session.decrypt(message))
            except OlmSessionError:
                continue
        raise CannotOpen(UndecryptableReason.NO_OLM_SESSION)

    def add_megolm(
        self, room_id: RoomId, session_id: str, session_key: str, given_by: tuple[UserId, str, SealedBy]
    ) -> bool:
        """
        Keep a Megolm session that a device (user, sender key, what is known of it) handed to us.

        Tells whether it can open more than before.

        Whoever was given a session can hand it on as theirs. So it is kept for each user who does, and opens what that
        user sends; of a user's devices it is the first one's.
        """
        owner, sender_key, sealed_by = given_by
        try:
            session = InboundGroupSession(session_key)
        except (OlmGroupSessionError, ValueError):
            return False
        if session.id != session_id:
            return False
        claims = self.megolm_sessions.setdefault((room_id, session_id), {})
        known = claims.get(owner)
        if known is not None and (
            known.sender_key != sender_key or known.session.first_known_index <= session.first_known_index
        ):
            return False
        kept = MegolmSession(session, owner, sender_key, sealed_by)
        claims[owner] = self.changes.megolm_sessions[(room_id, session_id, owner)] = kept
        return True

    def open_megolm(
        self, room_id: RoomId, session_id: str, sender: UserId, text: str
    ) -> tuple[str, int, MegolmSession]:
        """
        Open a Megolm event, and give its place in the session, too; raises CannotOpen.

        With the session of its sender; without one, another's shows at least that the event was sealed in it.
        """
        claims = self.megolm_sessions.get((room_id, session_id))
        if not claims:
            raise CannotOpen(UndecryptableReason.MISSING_SESSION)
        known = claims.get(sender) or next(iter(claims.values()))
        try:
            plaintext, index = known.session.decrypt(text)
        except (OlmGroupSessionError, ValueError) as error:
            is_early = "UNKNOWN_MESSAGE_INDEX" in str(error)
            raise CannotOpen(
                UndecryptableReason.BEFORE_SESSION if is_early else UndecryptableReason.MEGOLM_FAILED
            ) from None
        return str(plaintext), index, known

    def take_place(self, session_id: str, sender: UserId, index: int, place: Place) -> None:
        """
        Note that an event has a place in a Megolm session; raises CannotOpen if it is another's.

        Only for one that is where it has to be: anybody can send a copy of somebody's ciphertext, which must not make a
        replay of the original. So of several senders' it is the one sent earliest. A server that gives its user's copy
        an earlier time can have it taken for the original all the same: from outside the two cannot be told apart.
        """
        places = self.indices.setdefault((session_id, index), {})
        first = places.get(sender)
        if first is not None and first.event_id != place.event_id:
            raise CannotOpen(UndecryptableReason.REPLAYED)
        if any(_is_before(other, place) for user, other in places.items() if user != sender):
            raise CannotOpen(UndecryptableReason.REPLAYED)
        if first is None:
            places[sender] = self.changes.indices[(session_id, sender, index)] = place

    def take(self, text: str) -> bool:
        """Note a to-device ciphertext as taken; tells whether it had not been. The same may come by `/sync` too."""
        name = message_id(text)
        if name in self.messages:
            return False
        self.messages.add(name)
        self.changes.messages.add(name)
        return True

    def is_taken(self, text: str) -> bool:
        """Tell whether a ciphertext was taken before."""
        return message_id(text) in self.messages


def _is_before(first: Place, second: Place) -> bool:
    return first.at is not None and (second.at is None or first.at < second.at)


def message_id(text: str) -> str:
    """Give what a to-device ciphertext is recognised by."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
