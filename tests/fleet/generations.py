"""The client generations of MatrixRTC and what each does and writes, as read from matrix-js-sdk releases."""

from dataclasses import dataclass, replace

Device = tuple[str, str]  #: user id, device id


@dataclass(frozen=True)
class Generation:
    """One client release with its options."""

    name: str
    release: str
    modern: bool = False  #: `RTCEncryptionManager` (37.11 on); the legacy manager where the to-device option is unset
    to_device: bool = False  #: distributes by to-device when it joins
    smart: bool = False  #: a room key of somebody else makes it leave to-device for good
    grace_ms: int | None = 10_000  #: modern: a younger key is shared with a joiner; None: a key of any age
    key_history: bool = False  #: a room key event repeats all keys of the session
    indexes: int = 256  #: 16 up to 34.8
    sent_ts: bool = True
    padded: bool = False
    expires: bool = True
    long_state_key: bool = False  #: `_@user_DEVICE_m.call`, 38.0 on
    membership_id: bool = False  #: `membershipID` in the membership
    to_device_sent_ts: bool = True
    member_id: bool = False  #: a UUID as `member.id` in a to-device key


_R1 = Generation("R1", "36.2")
_S3 = Generation("S3", "37.13", modern=True, to_device=True, smart=True, padded=True)
_D2 = replace(_S3, name="D2", release="43.0", smart=False, long_state_key=True, membership_id=True, member_id=True)

#: By label; smart and D1 clients have the to-device option on, `D1off` has it unset.
GENERATIONS = {
    "R0": replace(_R1, name="R0", release="34.5", key_history=True, indexes=16, sent_ts=False, expires=False),
    "R1": _R1,
    "S1": replace(_R1, name="S1", release="37.6", to_device=True, smart=True, to_device_sent_ts=False),
    "S2": replace(_S3, name="S2", release="37.11", grace_ms=None),
    "S3": _S3,
    "D1": replace(_D2, name="D1", release="39.4", membership_id=False, member_id=False),
    "D1b": replace(_D2, name="D1", release="41.0"),
    "D1off": replace(_R1, name="D1", release="39.4", long_state_key=True),
    "D2": _D2,
}
