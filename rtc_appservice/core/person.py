"""
One user in what is kept, and what stands there once the user is forgotten.

A tombstone is random text of the length of what it stands for, since lengths are evidence: how long a sealed key
message must be follows from the ids in it. The same text gets the same tombstone everywhere, so whoever reads on comes
to the same result. Event ids stay: call ids derive from them, duplicates and redactions are told by them.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from rtc_appservice.core.model import Projected
from rtc_appservice.core.observed import (
    Body,
    KeyMark,
    MegolmEnvelope,
    Membership,
    OlmEnvelope,
    Rejected,
    RoomKey,
    RoomState,
    ToDeviceKey,
    Withheld,
)
from rtc_appservice.core.words import CallId, Device, DeviceId, FindingKind, UserId
from rtc_appservice.errors import InputError

#: Gives so many random characters that JSON writes as they are, capitals and digits: no new Matrix user is called so.
RandomText = Callable[[int], str]

_ATTEMPTS = 1000
#: Top-level domains nobody can register (RFC 2606), the longer one where there is room for it.
_RESERVED = (".invalid", ".test")


def check_user_id(text: str) -> UserId:
    """Give a user id; raises InputError if it is none."""
    localpart, colon, server = text.removeprefix("@").partition(":")
    if not (text.startswith("@") and localpart and colon and server) or len(text.encode()) > 255:
        raise InputError(f"{text!r} is no user id; one looks like @ann:example.org")
    if any(character.isspace() or not character.isprintable() for character in text):
        raise InputError(f"{text!r} is no user id; it holds a space or a control character")
    return UserId(text)


def mentions(value: Any, user_id: UserId) -> bool:
    """Tell whether a JSON value, keys of objects left out, names a user; a state key may name one in its middle."""
    if isinstance(value, str):
        return _named(user_id).search(value) is not None
    if isinstance(value, dict):
        return any(mentions(item, user_id) for item in value.values())
    return isinstance(value, list | tuple) and any(mentions(item, user_id) for item in value)


def _named(user_id: UserId) -> re.Pattern[str]:
    """Match a user id that is not the beginning of a longer one: its server goes on, or has a port."""
    return re.compile(re.escape(user_id) + r"(?![A-Za-z0-9.\-])(?!:[0-9]{1,5}(?![A-Za-z0-9]))")


class Tombstones:
    """What stands for one user, the user's devices and whatever else tells of them."""

    def __init__(self, user_id: UserId, random_text: RandomText, own_servers: Collection[str]) -> None:
        """
        Choose a tombstone for the user.

        The server stays if it is one of the operator's own, since that decides what is local. Any other may be of this
        user alone, and gets a name that cannot be registered.
        """
        self.user_id = user_id
        self._random_text = random_text
        self._aliases: dict[str, str] = {}
        self._used: set[str] = set()
        self._devices: set[str] = set()
        self._named = _named(user_id)
        localpart, _, server = user_id[1:].partition(":")
        place = server
        while server not in own_servers and (place == server or place in own_servers):
            place = self._server(_length(server))
        self.tombstone = user_id
        while self.tombstone == user_id:
            self.tombstone = UserId(f"@{random_text(_length(localpart))}:{place}")

    def _server(self, length: int) -> str:
        domain = next((each for each in _RESERVED if len(each) + 2 <= length), "")
        return self._random_text(length - len(domain)).lower() + domain

    def learn(self, devices: Iterable[str]) -> None:
        """Take device ids of the user: they can then be told inside state keys, whatever characters they hold."""
        self._devices.update(filter(None, devices))

    def alias(self, text: str) -> str:
        """Give what stands for a device id or another text of the user's, the same each time."""
        if text not in self._aliases and text:
            for _ in range(_ATTEMPTS):
                chosen = self._random_text(_length(text))
                if chosen not in self._used and chosen != text:
                    break
            else:
                raise InputError("There are too many devices with ids that short to give each a tombstone.")
            self._used.add(chosen)
            self._aliases[text] = chosen
        return self._aliases.get(text, text)

    def user(self, user_id: str) -> UserId:
        """Give the tombstone for the user, any other as it is."""
        return self.tombstone if user_id == self.user_id else UserId(user_id)

    def device(self, user_id: str, device_id: str) -> Device:
        """Give what stands for a device of the user, any other as it is."""
        if user_id != self.user_id:
            return UserId(user_id), DeviceId(device_id)
        return self.tombstone, DeviceId(self.alias(device_id))

    def text(self, text: str) -> str:
        """Replace the user, and the device that follows, in a state key or another text that may name them."""
        found = self._named.search(text)
        if found is None:
            return text
        return text[: found.start()] + self.tombstone + self._after(text[found.end() :])

    def _after(self, rest: str) -> str:
        """`_DEVICE`, `_DEVICE_m.call` and `:DEVICE` are what clients write after a user id."""
        if not rest:
            return rest
        named = rest[1:]
        for device in sorted(self._devices, key=len, reverse=True):
            if named == device or named.startswith(device + "_"):
                return rest[0] + self.alias(device) + named[len(device) :]
        device = named.removesuffix("_m.call")
        return rest[0] + self.alias(device) + named[len(device) :]

    # --- observations --------------------------------------------------------------------------

    def devices_in(self, body: Body) -> set[str]:
        """Give the devices of the user that a body names."""
        found: set[str | None] = set()
        if isinstance(body, OlmEnvelope | ToDeviceKey) and body.recipient == self.user_id:
            found.add(body.recipient_device)
        if body.sender == self.user_id:
            if isinstance(body, Membership | RoomKey | MegolmEnvelope):
                found.add(body.device_id)
            if isinstance(body, ToDeviceKey):
                found.add(body.claimed_device_id)
            if isinstance(body, RoomKey | ToDeviceKey):
                found.add(body.sender_device_id)
        return {device for device in found if device}

    def body(self, body: Body) -> Body:
        """Give what an observation holds with tombstones; hashes of the user's keys too, which would link anew."""
        changes: dict[str, Any] = {}
        if body.sender == self.user_id:
            changes = {"sender": self.tombstone} | self._of_sender(body)
        if isinstance(body, OlmEnvelope | ToDeviceKey) and body.recipient == self.user_id:
            changes |= {"recipient": self.tombstone, "recipient_device": self.alias(body.recipient_device)}
        if isinstance(body, Membership | Rejected) and body.key is not None and "key" not in changes:
            changes["key"] = self.text(body.key)
        if isinstance(body, Membership) and body.claimed_user_id is not None:
            changes["claimed_user_id"] = self.text(body.claimed_user_id)
        if isinstance(body, RoomState):
            changes["state_key"] = self.user(body.state_key)
        return replace(body, **changes)

    def _of_sender(self, body: Body) -> dict[str, Any]:
        names: tuple[str, ...] = ()
        changes: dict[str, Any] = {}
        if isinstance(body, Membership):
            names = ("device_id", "membership_id")
            if body.form == "sticky":
                names += ("key",)
        elif isinstance(body, RoomKey):
            names = ("device_id", "sender_device_id")
        elif isinstance(body, OlmEnvelope):
            names = ("sender_key_id",)
        elif isinstance(body, MegolmEnvelope):
            names = ("device_id", "session_key_id")
        elif isinstance(body, ToDeviceKey):
            names = ("claimed_device_id", "sender_device_id", "sender_key_id")
        elif isinstance(body, Withheld):
            names = ("session_key_id",)
        for name in names:
            value = getattr(body, name)
            if value is not None:
                changes[name] = self.text(value) if self._named.search(value) else self.alias(value)
        if isinstance(body, RoomKey | ToDeviceKey):
            changes["keys"] = tuple(self._mark(mark) for mark in body.keys)
        return changes

    def _mark(self, mark: KeyMark) -> KeyMark:
        return mark if mark.tag is None else replace(mark, tag=self.alias(mark.tag))

    # --- what was projected, as JSON ------------------------------------------------------------

    def told(self, value: Any) -> Any:
        """Give a JSON value in which the user is named as `user_id` and `device_id`, or alone, with tombstones."""
        if isinstance(value, list | tuple):
            return [self.told(item) for item in value]
        if not isinstance(value, dict):
            return self.tombstone if value == self.user_id else value
        changed = {name: self.told(item) for name, item in value.items()}
        if value.get("user_id") == self.user_id and isinstance(value.get("device_id"), str):
            changed["device_id"] = self.alias(value["device_id"])
        return changed

    def finding(self, finding: Mapping[str, Any], finding_ids: Mapping[str, str]) -> dict[str, Any]:
        """Give a finding with tombstones, under the id that the same finding has with them."""
        changed: dict[str, Any] = self.told(dict(finding))
        details, subject = changed.get("details") or {}, finding.get("subject") or {}
        claimed, named = details.get("claimed_device_id"), details.get("state_key_names")
        if claimed is not None and subject.get("user_id") == self.user_id:
            details["claimed_device_id"] = self.alias(claimed)
        if named is not None:
            details["state_key_names"] = self.text(finding["details"]["state_key_names"])
        changed["finding_id"] = finding_ids.get(finding["finding_id"], finding["finding_id"])
        return changed

    def report(self, report: Mapping[str, Any], finding_ids: Mapping[str, str]) -> dict[str, Any]:
        """Give a call's report with tombstones, its findings in the order that their new ids give."""
        changed: dict[str, Any] = self.told({name: value for name, value in report.items() if name != "findings"})
        found = [self.finding(finding, finding_ids) for finding in report["findings"]]
        found.sort(
            key=lambda each: (each["kind"] == FindingKind.FLOOD, datetime.fromisoformat(each["at"]), each["finding_id"])
        )
        return {name: found if name == "findings" else changed[name] for name in report}

    def renamed(self, before: Projected, after: Projected) -> dict[str, str]:
        """
        Take a room as projected from what was kept, and from the same with tombstones; give how finding ids changed.

        Two findings are the same if they say the same; of several that do, each is as good as the other.
        """
        waiting: dict[bytes, list[str]] = {}
        for call_id, finding in _findings(after):
            waiting.setdefault(_said(call_id, finding), []).append(finding["finding_id"])
        found = {}
        for call_id, finding in _findings(before):
            same = waiting.get(_said(call_id, self.finding(finding, {})))
            if same:
                found[finding["finding_id"]] = same.pop()
        return {old: new for old, new in found.items() if old != new}


def _findings(projected: Projected) -> Iterator[tuple[CallId | None, dict[str, Any]]]:
    """Give all findings of a room with the calls they belong to."""
    of_calls = [(call.report.call_id, call.report.findings) for call in projected.calls]
    for call_id, findings in (*of_calls, (None, projected.findings)):
        for finding in msgspec.to_builtins(findings):
            yield call_id, finding


def _said(call_id: CallId | None, finding: Mapping[str, Any]) -> bytes:
    said = {name: value for name, value in finding.items() if name != "finding_id"}
    return msgspec.json.encode([call_id, said], order="deterministic")


def _length(text: str) -> int:
    """Count the bytes of a text in JSON, its quotes left out."""
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2
