"""What really happened in a simulated call: written by the simulator, read by the tests."""

from dataclasses import dataclass, field

from .generations import Device


@dataclass(frozen=True)
class MediaKey:
    """A media key as text, with a short name that says nothing about it."""

    key_id: str
    text: str


@dataclass
class Stint:
    """One device's continuous membership."""

    device: Device
    label: str  #: in `GENERATIONS`
    joined_at: int = 0
    left_at: int | None = None
    crashed_at: int | None = None


@dataclass
class RoomKeySent:
    """A room key event."""

    event_id: str
    at: int  #: `origin_server_ts`
    device: Device
    stint: Stint | None  #: None: the sender was never in the call
    after_leave: bool
    keys: list[tuple[int, str]]  #: (index, key id)


@dataclass
class ToDeviceSent:
    """A to-device message: a media key, or the share of a Megolm session (`key_id` None)."""

    message_id: str
    at: int
    sender: Device
    recipient: Device
    stint: Stint
    index: int
    key_id: str | None
    after_leave: bool  #: sent after the sender had left, as the sender knows it
    distribution: int  #: numbers the acts of handing out
    received_at: int | None = None  #: None: the appservice never got it


@dataclass
class Switch:
    """A client left to-device."""

    at: int
    device: Device
    stint: Stint
    trigger: str | None  #: the room key event; None: its host cannot send
    trigger_device: Device | None


@dataclass
class Truth:
    """The log of one room."""

    room_id: str
    server: str
    encrypted: bool
    stints: list[Stint] = field(default_factory=list)
    room_keys: list[RoomKeySent] = field(default_factory=list)
    to_device: list[ToDeviceSent] = field(default_factory=list)
    switches: list[Switch] = field(default_factory=list)
    ended_at: int = 0  #: time of the last transaction

    @property
    def call_keys(self) -> list[ToDeviceSent]:
        """Give the to-device messages that handed out media keys."""
        return [message for message in self.to_device if message.key_id is not None]
