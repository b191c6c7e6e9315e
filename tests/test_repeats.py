from rtc_appservice.repeats import LINE_SECONDS, Repeats


def test_the_first_of_a_kind_is_told_at_once_and_the_rest_once_a_minute() -> None:
    """The count is of all since the last line, the one at hand included."""
    now = 5.0
    repeats = Repeats(lambda: now)

    assert [1, None, None] == [repeats.note("a") for _ in range(3)]
    assert 1 == repeats.note("b")
    now += LINE_SECONDS - 1
    assert repeats.note("a") is None
    now += 1
    assert [4, None] == [repeats.note("a"), repeats.note("a")]
    now += 10 * LINE_SECONDS
    assert 2 == repeats.note("a")
