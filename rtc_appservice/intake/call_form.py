"""
Stage 1: which call the device would join, and what it sends for that: the form and the dialect the others use. Pure.

Clients of the state form do not look for sticky members, and sticky ones of different js-sdk releases do not see each
other (seen with 36.2 to 43.0). A sticky membership is sent in clear, also in an encrypted room: the device cannot
encrypt, and js-sdk 43.0 was seen to send its keys to such a member all the same.
"""

from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from rtc_appservice.core.stints import DeviceStint
from rtc_appservice.core.words import Device, UserId

STATE_TYPE = "org.matrix.msc3401.call.member"
STICKY_TYPE = "org.matrix.msc4143.rtc.member"
#: MSC4143's newest text names no device: it is the one that encrypted the membership, which ours cannot.
_NEEDS_ENCRYPTION = "msc4143"
#: js-sdk 36 to 43: a membership is believed for four hours.
EXPIRES_SECONDS = 4 * 3600
#: MSC4354: nothing sticks longer than an hour.
STICKY_SECONDS = 3600


class CallForm(Struct, frozen=True):
    """A way to be in a call that some of its members understand."""

    slot_id: str  #: normalised
    dialect: str | None  #: of a sticky membership; None: the state form


class OwnMembership(Struct, frozen=True, kw_only=True):
    """What is sent to be a member, and to be none."""

    event_type: str
    state_key: str | None  #: None: a sticky event
    content: dict[str, Any]
    leave: dict[str, Any]

    @property
    def lasts_seconds(self) -> float:
        """Give how long it is believed without a refresh."""
        return STICKY_SECONDS if self.state_key is None else EXPIRES_SECONDS

    @property
    def key(self) -> str:
        """Give the state key, or the sticky key."""
        return self.state_key or str(self.content["msc4354_sticky_key"])


def others_in(stints: Iterable[DeviceStint], own_user: UserId) -> list[DeviceStint]:
    """Give the live stints of others that the device could join: those of the state form first, the oldest first."""
    live = [stint for stint in stints if stint.left_at is None and not stint.sealed and stint.user_id != own_user]
    able = [stint for stint in live if form_of(stint).dialect != _NEEDS_ENCRYPTION]
    return sorted(able, key=lambda stint: (form_of(stint).dialect is not None, stint.joined_at))


def form_of(stint: DeviceStint) -> CallForm:
    """Give the form of a membership that could be read."""
    return CallForm(stint.slot_id, stint.memberships[-1].dialect)


def wanted_form(others: Iterable[DeviceStint], current: CallForm | None) -> CallForm | None:
    """
    Give the form to be in the call by, None if nobody else is in one.

    The current one stays while it has members, but the state form comes first: sticky members see it, and members of
    the state form see no other.
    """
    forms = [form_of(stint) for stint in others]
    if current in forms and (current.dialect is None or forms[0].dialect is not None):
        return current
    return forms[0] if forms else None


def state_membership(device: Device, form: CallForm, other: dict[str, Any]) -> OwnMembership:
    """Give a membership of the state form; `other` is the content of an older member."""
    user_id, device_id = device
    application, _, name = form.slot_id.partition("#")
    content = {
        "application": application,
        "call_id": other.get("call_id", "" if name == "ROOM" else name),
        "scope": "m.room",
        "device_id": device_id,
        "expires": EXPIRES_SECONDS * 1000,
        "membershipID": f"{user_id}:{device_id}",
        # Clients take the SFU of the oldest member, which we may become: it is the one that is used already.
        "focus_active": other.get("focus_active", {"type": "livekit", "focus_selection": "oldest_membership"}),
        "foci_preferred": other.get("foci_preferred", []),
    }
    key = f"_{user_id}_{device_id}_{application}"
    return OwnMembership(event_type=STATE_TYPE, state_key=key, content=content, leave={})


def refreshed(membership: OwnMembership, created_ms: int) -> OwnMembership:
    """Give what a refresh sends: a sticky event again; a state event believed for longer since it was first sent."""
    if membership.state_key is None:
        return membership
    content = membership.content
    expires = content["expires"] + EXPIRES_SECONDS * 1000
    return OwnMembership(
        event_type=membership.event_type,
        state_key=membership.state_key,
        content={**content, "created_ts": created_ms, "expires": expires},
        leave=membership.leave,
    )


def sticky_membership(device: Device, form: CallForm, member_id: str) -> OwnMembership:
    """
    Give a sticky membership in the dialect of js-sdk 39, 41 or 43; it names no SFU, as we send no media.

    `member_id` is a random id; 39 has one of its own making.
    """
    user_id, device_id = device
    application, _, _name = form.slot_id.partition("#")
    slot_id = f"{application}#" if form.dialect == "js_39" else form.slot_id
    key = f"_{user_id}_{device_id}_{application}" if form.dialect == "js_39" else member_id
    content: dict[str, Any] = {
        "application": {"type": application},
        "slot_id": slot_id,
        "member": {"id": key, "user_id": user_id, "device_id": device_id},
        "versions": [],
        "msc4354_sticky_key": key,
    }
    leave = {"msc4354_sticky_key": key}
    if form.dialect == "js_43":
        content["transports"] = {"can_subscribe": ["livekit"], "published": []}
        leave["slot_id"] = slot_id
    else:
        content["rtc_transports"] = []
    return OwnMembership(event_type=STICKY_TYPE, state_key=None, content=content, leave=leave)
