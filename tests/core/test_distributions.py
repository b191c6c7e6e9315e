"""A distribution is one act of one device handing out a key by one key transport."""

from rtc_appservice.core.words import KeyTransport

from .build import Scene, at, who


def call() -> Scene:
    """Give a call of three in which one sends by both transports."""
    scene = Scene()
    for seconds, name in ((0, "alice"), (10, "bob"), (20, "carol")):
        scene.join(name, seconds)
    scene.to_device("alice", "bob", 20.1)
    scene.to_device("alice", "carol", 20.2)
    scene.room_key("alice", 30, 2)
    scene.room_key("alice", 40, 2)
    scene.leave("bob", 100)
    scene.to_device("bob", "alice", 101)
    return scene


def test_distributions_come_in_order_with_their_ids() -> None:
    """In order of time, ids unique and the same on every projection."""
    first, again = call().session().distributions, call().session().distributions

    assert [at(20.1), at(30), at(40), at(101)] == [one.at for one in first]
    assert [one.distribution_id for one in first] == [one.distribution_id for one in again]
    assert 4 == len({one.distribution_id for one in first})


def test_what_a_distribution_tells() -> None:
    """Sender, transport, index, who could receive it, and what it rests on."""
    sealed, clear, again, gone = call().session().distributions

    assert [KeyTransport.TO_DEVICE, KeyTransport.ROOM_EVENT, KeyTransport.ROOM_EVENT, KeyTransport.TO_DEVICE] == [
        one.key_transport for one in (sealed, clear, again, gone)
    ]
    assert (None, 2) == (sealed.index, clear.index)
    assert (2, 2, 2, 1) == tuple(one.recipients for one in (sealed, clear, again, gone))
    assert (2, 1) == (len(sealed.observations), len(clear.observations))
    assert [False, False, True, False] == [one.resend for one in (sealed, clear, again, gone)]
    assert [False, False, False, True] == [one.after_leave for one in (sealed, clear, again, gone)]
    assert who("bob") == (gone.sender.user_id, gone.sender.device_id)


def test_the_counts_are_those_of_the_distributions() -> None:
    """The report's totals are the distributions', resends included."""
    session = call().session()
    counts = session.report.distributions

    assert (2, 2, 1) == (counts.room_event, counts.to_device, counts.resends)
    assert 4 == len(session.distributions)


def test_devices_seen_by_to_device_are_told() -> None:
    """Each with the last time: the history by which a later fallback is known as given up."""
    assert ((*who("alice"), at(20.2)), (*who("bob"), at(101))) == call().session().to_device_seen
