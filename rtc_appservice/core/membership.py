"""
Stage 2: call membership events, every dialect, validated as js-sdk does.

"Counts as a member" here equals what clients count (js-sdk 36 to 43, `CallMembership`): a malformed
event raises `Malformed`; one that is well-formed but which clients do not count has `ignored` set to
the rule's name and still replaces what stood at its key.
"""

from typing import Any

from rtc_appservice.core import fields
from rtc_appservice.core.fields import Malformed
from rtc_appservice.core.observed import Membership
from rtc_appservice.core.words import DeviceId, UserId

STATE_TYPES = frozenset({"org.matrix.msc3401.call.member", "m.call.member"})
STICKY_TYPES = frozenset({"org.matrix.msc4143.rtc.member", "m.rtc.member"})
#: Where an event says, outside its content, that it is sticky (MSC4354).
STICKY_MARKS = ("msc4354_sticky", "sticky")

#: Longest stickiness a homeserver grants, MSC4354.
MAX_STICKY_SECONDS = 3600.0


def normalise_slot(application: str, name: str) -> str:
    """Give the slot id under which `""`, `ROOM` and `room` are one, as MSC4143 and js-sdk 40.2 map them."""
    return f"{application}#{'ROOM' if name in ('', 'ROOM', 'room') else name}"


def is_pre_matrixrtc(content: dict[str, Any]) -> bool:
    """Tell MSC3401 full-mesh calls (`m.calls`) and the `memberships` array that js-sdk stopped reading in 36.0."""
    return "application" not in content and ("m.calls" in content or "memberships" in content)


def parse_state(content: dict[str, Any], sender: UserId, key: str) -> Membership:
    """Parse a state-form membership event; raises Malformed."""
    if "application" not in content:
        return Membership(
            sender=sender,
            form=_state_form(key, None),
            key=key,
            live=False,
            ignored="no_application" if content else None,
        )
    device_id = fields.text(content, "device_id", "content")
    application = fields.text(content, "application", "content")
    call_id = fields.text(content, "call_id", "content")
    focus = fields.table(content, "focus_active", "content")
    fields.text(focus, "type", "content.focus_active")
    _check_transports(fields.entries(content, "foci_preferred", "content", required=False), "content.foci_preferred")
    fields.optional_text(content, "scope", "content")
    created_at = fields.optional_time(content, "created_ts", "content")
    expires = content.get("expires")  # js-sdk does not check its type
    return Membership(
        sender=sender,
        form=_state_form(key, device_id),
        key=key,
        live=True,
        slot_id=normalise_slot(application, call_id),
        device_id=DeviceId(device_id),
        claimed_user_id=_other_user(key, sender, device_id),
        created_at=created_at,
        expires_seconds=_seconds(expires),
        membership_id=fields.optional_text(content, "membershipID", "content"),
        focus_selection=fields.optional_text(focus, "focus_selection", "content.focus_active"),
        intent=_intent(content, "content"),
    )


def parse_sticky(content: dict[str, Any], sender: UserId, sticky_seconds: float | None) -> Membership:
    """Parse a sticky membership event, whose stickiness the envelope tells; raises Malformed."""
    key = _sticky_key(content)
    ignored = None if sticky_seconds is not None else "not_sticky"
    member = content.get("member")
    if not isinstance(member, dict) and not set(content) - {"msc4354_sticky_key", "sticky_key", "slot_id"}:
        return Membership(sender=sender, form="sticky", key=key, live=False, ignored=ignored)
    member = fields.table(content, "member", "content")
    if member.get("membership") == "leave":
        return Membership(sender=sender, form="sticky", key=key, live=False, dialect="msc4143", ignored=ignored)
    slot_id = fields.text(content, "slot_id", "content")
    application = fields.table(content, "application", "content")
    kind = fields.text(application, "type", "content.application")
    if not slot_id.startswith(kind + "#") or slot_id.count("#") != 1:
        raise Malformed("content.slot_id")
    member_id = fields.text(member, "id", "content.member")
    dialect = _dialect(content, member, slot_id)
    if dialect == "msc4143":
        # The newest text names no device: it is the one that encrypted the event. In clear, the member id stands in.
        device_id = member_id
    else:
        device_id = fields.text(member, "device_id", "content.member")
        if fields.text(member, "user_id", "content.member") != sender:
            ignored = ignored or "member_user_is_not_sender"
    return Membership(
        sender=sender,
        form="sticky",
        key=key,
        live=True,
        slot_id=normalise_slot(kind, slot_id.split("#", 1)[1]),
        device_id=DeviceId(device_id),
        expires_seconds=sticky_seconds,
        dialect=dialect,
        membership_id=member_id,
        intent=_intent(application, "content.application"),
        ignored=ignored,
    )


def sticky_seconds(event: dict[str, Any]) -> float | None:
    """Give the stickiness of an event in seconds, at most an hour, or None if it is not sticky (MSC4354)."""
    for name in STICKY_MARKS:
        mark = event.get(name)
        if isinstance(mark, dict):
            duration = mark.get("duration_ms")
            if isinstance(duration, int | float) and not isinstance(duration, bool) and duration > 0:
                return min(duration, MAX_STICKY_SECONDS * 1000) / 1000
    return None


def _dialect(content: dict[str, Any], member: dict[str, Any], slot_id: str) -> str:
    if "membership" in member or "user_id" not in member:
        return "msc4143"
    if "transports" in content:
        transports = fields.table(content, "transports", "content")
        _check_transports(
            fields.entries(transports, "published", "content.transports", required=False), "content.transports"
        )
        return "js_43"
    _check_transports(fields.entries(content, "rtc_transports", "content", required=True), "content.rtc_transports")
    if not all(isinstance(item, str) for item in fields.entries(content, "versions", "content", required=True)):
        raise Malformed("content.versions")
    return "js_39" if slot_id.endswith("#") else "js_41"


def _sticky_key(content: dict[str, Any]) -> str:
    given = [fields.text(content, n, "content") for n in ("msc4354_sticky_key", "sticky_key") if n in content]
    if not given or given[0] != given[-1]:
        raise Malformed("content.msc4354_sticky_key")
    return given[0]


def _check_transports(transports: list[Any], path: str) -> None:
    for transport in transports:
        if not isinstance(transport, dict) or not isinstance(transport.get("type"), str):
            raise Malformed(f"{path}[].type")


def _state_form(key: str, device_id: str | None) -> str:
    """`session_v2` keys end in `_DEVICE_m.call` (js-sdk 38.0 on), `session_v1` in `_DEVICE`; owned ones lack `_`."""
    if not key.startswith("_"):
        return "owned"
    is_v2 = (
        key.endswith("_m.call") if device_id is None else f"_{device_id}_" in key and not key.endswith("_" + device_id)
    )
    return "session_v2" if is_v2 else "session_v1"


def _other_user(key: str, sender: str, device_id: str) -> UserId | None:
    """Give the user a state key names if not the sender. Ids may hold `_`: only the claimed device is cut off."""
    named = key.removeprefix("_")
    if not named.startswith("@") or named == sender or named.startswith(sender + "_"):
        return None
    return UserId(named.rsplit("_" + device_id, 1)[0])


def _intent(source: dict[str, Any], path: str) -> str | None:
    value = fields.optional_text(source, "m.call.intent", path)
    return value if value in (None, "audio", "video") else "other"


def _seconds(milliseconds: Any) -> float | None:
    if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
        return None
    return milliseconds / 1000 if 0 <= milliseconds < 1e14 else None
