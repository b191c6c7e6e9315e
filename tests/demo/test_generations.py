from rtc_appservice.core.words import Device, DeviceId, KeyTransport, UserId
from rtc_appservice.demo.generations import Distribute, RoomOnly, ToDevice, Wake

ALICE: Device = (UserId("@alice:x"), DeviceId("A"))
BOB: Device = (UserId("@bob:x"), DeviceId("B"))
CAROL: Device = (UserId("@carol:x"), DeviceId("C"))


def room(index: int, followed: Device | None = None) -> Distribute:
    """Give a room key."""
    return Distribute(key_transport=KeyTransport.ROOM_EVENT, index=index, followed=followed)


def to_device(index: int, *recipients: Device) -> Distribute:
    """Give a key to devices."""
    return Distribute(key_transport=KeyTransport.TO_DEVICE, index=index, recipients=recipients)


class TestRoomOnly:
    """js-sdk 36.2."""

    def test_sends_its_key_before_its_membership(self) -> None:
        """The first key does not wait for the membership."""
        assert [room(0)] == RoomOnly(ALICE).about_to_join(0.0)

    def test_sends_the_same_key_for_a_joiner(self) -> None:
        """A join makes it send again, with the same index."""
        client = RoomOnly(ALICE)
        client.about_to_join(0.0)
        client.joined(ALICE, 0.1)

        assert [room(0)] == client.joined(BOB, 4.0)

    def test_throttles(self) -> None:
        """Joins within 3 s of a sending lead to one sending, 3 s after it."""
        client = RoomOnly(ALICE)
        client.about_to_join(0.0)

        assert [Wake(at=3.0)] == client.joined(BOB, 1.0)
        assert [] == client.joined(CAROL, 2.0)
        assert [room(0)] == client.woken(3.0)
        assert [] == client.woken(3.0)

    def test_makes_a_new_key_after_a_leave(self) -> None:
        """A leave makes a new key, 3 s later."""
        client = RoomOnly(ALICE)
        client.about_to_join(0.0)

        assert [Wake(at=13.0)] == client.left(BOB, 10.0)
        assert [] == client.left(CAROL, 11.0)
        assert [room(1)] == client.woken(13.0)

    def test_stops_when_it_leaves(self) -> None:
        """What is due after the own leave is not done."""
        client = RoomOnly(ALICE)
        client.about_to_join(0.0)
        client.left(BOB, 10.0)
        client.left(ALICE, 11.0)

        assert [] == client.woken(13.0)
        assert [] == client.joined(CAROL, 20.0)


class TestToDevice:
    """js-sdk from 37.11 on."""

    def test_gives_a_young_key_to_a_joiner_only(self) -> None:
        """Within 10 s a joiner gets the key the others have."""
        client = ToDevice(ALICE, switches=False)

        assert [] == client.about_to_join(0.0)
        assert [] == client.joined(ALICE, 0.0)
        assert [to_device(0, BOB)] == client.joined(BOB, 1.0)
        assert [to_device(0, CAROL)] == client.joined(CAROL, 9.9)

    def test_gives_a_new_key_to_all_when_the_old_is_old(self) -> None:
        """After 10 s a join makes a new key for everybody."""
        client = ToDevice(ALICE, switches=False)
        client.joined(BOB, 0.0)

        assert [to_device(0, BOB)] == client.joined(ALICE, 1.0)
        assert [to_device(1, BOB, CAROL)] == client.joined(CAROL, 11.0)

    def test_goes_on_after_leaving(self) -> None:
        """A leave, the own one included, makes a new key for those who stay; a later one another."""
        client = ToDevice(ALICE, switches=False)
        for device in (ALICE, BOB, CAROL):
            client.joined(device, 0.0)

        assert [to_device(1, BOB, CAROL)] == client.left(ALICE, 5.0)
        assert [to_device(2, CAROL)] == client.left(BOB, 6.0)
        assert [] == client.left(CAROL, 7.0)

    def test_does_nothing_before_it_joins(self) -> None:
        """Watching a call is not taking part in it."""
        client = ToDevice(ALICE, switches=True)

        assert [] == client.joined(BOB, 0.0)
        assert [] == client.room_key_seen(BOB, 1.0)
        assert [] == client.left(BOB, 2.0)

    def test_switches_once_with_the_key_it_has(self) -> None:
        """The first room key of somebody else moves it to room events; it stays there until it joins anew."""
        client = ToDevice(ALICE, switches=True)
        client.joined(ALICE, 0.0)
        client.joined(BOB, 1.0)

        assert [room(0, followed=CAROL)] == client.room_key_seen(CAROL, 2.0)
        assert [] == client.room_key_seen(BOB, 2.1)
        assert [room(1)] == client.left(CAROL, 3.0)
        assert [room(2)] == client.left(ALICE, 4.0)
        assert [to_device(0, BOB)] == client.joined(ALICE, 5.0)

    def test_switches_with_a_new_key_when_the_old_is_old(self) -> None:
        """After 10 s the switch makes a new key."""
        client = ToDevice(ALICE, switches=True)
        client.joined(ALICE, 0.0)

        assert [room(1, followed=CAROL)] == client.room_key_seen(CAROL, 20.0)

    def test_modern_does_not_switch(self) -> None:
        """From 41.1 on nothing leads to room events."""
        client = ToDevice(ALICE, switches=False)
        client.joined(ALICE, 0.0)

        assert [] == client.room_key_seen(CAROL, 2.0)
