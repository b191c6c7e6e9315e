"""Fields of untrusted JSON are read strictly, and the one at fault is named without its value."""

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given

from rtc_appservice.core import fields
from rtc_appservice.core.fields import Malformed

from .test_strip import json_values


@pytest.mark.parametrize("value", [None, 1, True, [], {}, "x" * 256, "nul\0"])
def test_text_is_a_string_of_at_most_255_characters(value: Any) -> None:
    """Anything else is malformed, and the fault is the field's path."""
    with pytest.raises(Malformed) as fault:
        fields.text({"name": value}, "name", "content.member")

    assert "content.member.name" == fault.value.field


@pytest.mark.parametrize("value", ["", "x", "x" * 255, "ünï"])
def test_text_gives_what_stands_there(value: str) -> None:
    """Strings within the limit are given as they are; the empty one counts."""
    assert value == fields.text({"name": value}, "name", "content")


def test_absent_optional_fields_are_none() -> None:
    """Absent and null optional fields are none."""
    assert [None] * 4 == [
        fields.optional_text({}, "a", "content"),
        fields.optional_text({"a": None}, "a", "content"),
        fields.optional_number({}, "a", "content"),
        fields.optional_time({"a": None}, "a", "content"),
    ]


@pytest.mark.parametrize("value", [True, "1", [], {}, math.nan, math.inf, -math.inf, 10**400])
def test_numbers_are_finite_numbers(value: Any) -> None:
    """Booleans, texts and what no float can hold are malformed."""
    with pytest.raises(Malformed):
        fields.optional_number({"a": value}, "a", "content")


@pytest.mark.parametrize("value", [0, -1, 1.5, 10**15])
def test_numbers_are_given_as_they_are(value: float) -> None:
    """Finite numbers of either kind pass."""
    assert value == fields.optional_number({"a": value}, "a", "content")


@pytest.mark.parametrize(
    ("milliseconds", "moment"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (1795423829796, datetime(2026, 11, 23, 8, 50, 29, 796000, tzinfo=UTC)),
        (-1, None),
        (10**18, None),
    ],
)
def test_milliseconds_become_aware_times(milliseconds: float, moment: datetime | None) -> None:
    """Times before 1970 or behind year 9999 are none."""
    assert moment == fields.from_ms(milliseconds)


@pytest.mark.parametrize("value", [-1, 10**18, "1795423829796", True])
def test_what_is_no_time_is_malformed(value: Any) -> None:
    """An optional time that stands there must be one."""
    with pytest.raises(Malformed):
        fields.optional_time({"a": value}, "a", "content")


@pytest.mark.parametrize("value", [None, 1, "x", []])
def test_tables_are_objects(value: Any) -> None:
    """A required object is one."""
    with pytest.raises(Malformed) as fault:
        fields.table({"focus": value}, "focus", "content")

    assert "content.focus" == fault.value.field


def test_arrays_may_be_absent_where_not_required() -> None:
    """An absent optional array is empty; a required one, or one of another shape, is malformed."""
    assert [] == fields.entries({}, "a", "content", required=False)
    assert [1] == fields.entries({"a": [1]}, "a", "content", required=True)
    with pytest.raises(Malformed):
        fields.entries({}, "a", "content", required=True)
    with pytest.raises(Malformed):
        fields.entries({"a": {}}, "a", "content", required=False)


@given(json_values)
def test_no_value_raises_anything_but_malformed(value: Any) -> None:
    """Whatever stands there, a reader gives a value or raises Malformed, and the fault never holds the value."""
    readers = [fields.text, fields.optional_text, fields.optional_number, fields.optional_time, fields.table]
    for reader in readers:
        fault = None
        try:
            reader({"name": value}, "name", "content")
        except Malformed as raised:
            fault = raised
        assert fault is None or "content.name" == fault.field == str(fault)
