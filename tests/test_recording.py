import io
from datetime import UTC, datetime
from pathlib import Path

import pytest

from rtc_appservice.errors import InputError
from rtc_appservice.recording import parse_lines, read_recordings

AT = datetime(2026, 11, 23, 10, 0, 0, 500_000, UTC)


@pytest.mark.parametrize(
    "line",
    [
        b'{"recv_ts": 1795428000500, "body": {}}',
        b'{"received_at": 1795428000500, "body": {}}',
        b'{"received_at": "2026-11-23T10:00:00.5Z", "body": {}}',
        b'{"received_at": "2026-11-23T12:00:00.500+02:00", "recv_ts": 1, "n": 1, "path": "/1", "body": {}}',
    ],
)
def test_every_form_of_time_is_read(line: bytes) -> None:
    """Milliseconds and RFC 3339, under either name; other keys are passed over."""
    (transaction,) = parse_lines([line], "x")

    assert (AT, {}) == (transaction.received_at, transaction.body)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"recv_ts": 1}', "`body` must be"),
        (b'{"recv_ts": 1, "body": "{}"}', "`body` must be"),
        (b'{"body": {}}', "`received_at`"),
        (b'{"recv_ts": true, "body": {}}', "`received_at`"),
        (b'{"recv_ts": 1e300, "body": {}}', "`received_at`"),
        (b'{"received_at": "2026-11-23T10:00:00", "body": {}}', "with an offset"),
        (b'{"received_at": "yesterday", "body": {}}', "`received_at`"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str) -> None:
    """The operator learns which file, which line, and what is wanted; never what stood there."""
    with pytest.raises(InputError, match=rf"^name, line 3: .*{message}") as caught:
        list(parse_lines([b'{"recv_ts": 1, "body": {}}', b"\n", line], "name"))

    assert "yesterday" not in str(caught.value)


def test_files_and_standard_input_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several recordings are one, in the order they are named."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"recv_ts": 1, "body": {"n": 1}}\n')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"recv_ts": 2, "body": {"n": 2}}\n')))

    assert [1, 2] == [transaction.body["n"] for transaction in read_recordings([str(path), "-"])]


def test_a_missing_file_is_said() -> None:
    """A misspelt name is no empty recording."""
    with pytest.raises(InputError, match="nowhere cannot be read: No such file"):
        list(read_recordings(["nowhere"]))


def test_nothing_recorded_is_said(tmp_path: Path) -> None:
    """An empty file is no recording of a quiet homeserver."""
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"no transactions in .*a\.jsonl"):
        list(read_recordings([str(tmp_path / "a.jsonl")]))
