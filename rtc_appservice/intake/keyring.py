"""
Stage 2: what a device of ours can open: its Olm account, its Olm sessions, the Megolm sessions it was given.

It is changed by what it opens, in memory; what was changed is listed, to be written in the commit of the observations
that came of it, or to be forgotten with it. libolm's objects hold the secrets; of what they opened nothing stays here.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

from olm.account import OlmAccountError
from olm.group_session import InboundGroupSession, OlmGroupSessionError
from olm.session import InboundSession, OlmMessage, OlmPreKeyMessage, OlmSessionError

from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import Device, RoomId, UserId
from rtc_appservice.intake.device_keys import SealedBy

#: A sender whose device forgot its session makes a new one; older than these none is used again.
MAX_OLM_SESSIONS = 10


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


@dataclass(slots=True)
class Changes:
    """What opening changed."""

    account: bool = False
    olm_sessions: dict[tuple[str, str], Any] = field(default_factory=dict)  #: (sender key, session id) -> olm.Session
    megolm_sessions: dict[tuple[RoomId, str], MegolmSession] = field(default_factory=dict)
    indices: dict[tuple[str, int], str] = field(default_factory=dict)  #: used first: (session id, index) -> event id
    messages: set[str] = field(default_factory=set)  #: hashes of the ciphertexts that were taken


@dataclass(slots=True)
class Keyring:
    """The keys of one device, or those of them that are needed just now."""

    device: Device
    account: Any  #: olm.Account
    olm_sessions: dict[str, list[Any]] = field(default_factory=dict)  #: by sender key, the newest first
    megolm_sessions: dict[tuple[RoomId, str], MegolmSession] = field(default_factory=dict)
    indices: dict[tuple[str, int], str] = field(default_factory=dict)
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

    def open_olm(self, sender_key: str, olm_type: int, text: str) -> str:
        """Open an Olm message; raises CannotOpen, and then nothing has changed."""
        try:
            if olm_type == 0:
                return self._open_pre_key(sender_key, OlmPreKeyMessage(text))
            return self._open_normal(sender_key, OlmMessage(text))
        except (OlmSessionError, ValueError):
            raise CannotOpen(UndecryptableReason.OLM_FAILED) from None

    def _open_pre_key(self, sender_key: str, message: Any) -> str:
        for session in self.olm_sessions.get(sender_key, ()):
            if session.matches(message, sender_key):
                return self._decrypt(sender_key, session, message)
        # The sender's key is compared afterwards: given it, libolm (3.2.16) reads address 0 if the message has none.
        session = InboundSession(self.account, message)
        if not session.matches(message, sender_key):
            raise CannotOpen(UndecryptableReason.OLM_FAILED)
        text = self._decrypt(sender_key, session, message)
        # Only now: a message that cannot be opened uses up no one-time key.
        try:
            self.account.remove_one_time_keys(session)
        except OlmAccountError:  # the fallback key, which stays
            return self._keep(sender_key, session, text)
        self.changes.account = True
        return self._keep(sender_key, session, text)

    def _keep(self, sender_key: str, session: Any, text: str) -> str:
        known = self.olm_sessions.setdefault(sender_key, [])
        known.insert(0, session)
        del known[MAX_OLM_SESSIONS:]
        return text

    def _open_normal(self, sender_key: str, message: Any) -> str:
        for session in self.olm_sessions.get(sender_key, ()):
            try:
                return self._decrypt(sender_key, session, message)
            except OlmSessionError:
                continue
        raise CannotOpen(UndecryptableReason.NO_OLM_SESSION)

    def _decrypt(self, sender_key: str, session: Any, message: Any) -> str:
        text = str(session.decrypt(message))
        self.changes.olm_sessions[(sender_key, session.id)] = session
        return text

    def add_megolm(
        self, room_id: RoomId, session_id: str, session_key: str, given_by: tuple[UserId, str, SealedBy]
    ) -> bool:
        """
        Keep a Megolm session that a device (user, sender key, what is known of it) handed to us.

        Tells whether it can open more than before.

        Who hands out a session that is known already is not its owner, unless it is the same device once more.
        """
        owner, sender_key, sealed_by = given_by
        try:
            session = InboundGroupSession(session_key)
        except (OlmGroupSessionError, ValueError):
            return False
        if session.id != session_id:
            return False
        known = self.megolm_sessions.get((room_id, session_id))
        if known is not None and (
            known.sender_key != sender_key or known.session.first_known_index <= session.first_known_index
        ):
            return False
        kept = MegolmSession(session, owner, sender_key, sealed_by)
        self.megolm_sessions[(room_id, session_id)] = self.changes.megolm_sessions[(room_id, session_id)] = kept
        return True

    def open_megolm(self, room_id: RoomId, session_id: str, text: str) -> tuple[str, int, MegolmSession]:
        """Open a Megolm event, and give its place in the session, too; raises CannotOpen."""
        known = self.megolm_sessions.get((room_id, session_id))
        if known is None:
            raise CannotOpen(UndecryptableReason.MISSING_SESSION)
        try:
            plaintext, index = known.session.decrypt(text)
        except (OlmGroupSessionError, ValueError) as error:
            is_early = "UNKNOWN_MESSAGE_INDEX" in str(error)
            raise CannotOpen(
                UndecryptableReason.BEFORE_SESSION if is_early else UndecryptableReason.MEGOLM_FAILED
            ) from None
        return str(plaintext), index, known

    def take_place(self, session_id: str, index: int, event_id: str) -> None:
        """
        Note that an event has a place in a Megolm session; raises CannotOpen if it is another's.

        Only for one that is where and from whom it has to be: anybody can send a copy of somebody's ciphertext, which
        must not make a replay of the original.
        """
        first = self.indices.get((session_id, index))
        if first is None:
            self.indices[(session_id, index)] = self.changes.indices[(session_id, index)] = event_id
        elif first != event_id:
            raise CannotOpen(UndecryptableReason.REPLAYED)

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


def message_id(text: str) -> str:
    """Give what a to-device ciphertext is recognised by."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]
