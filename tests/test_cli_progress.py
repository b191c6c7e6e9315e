"""What takes long says so on stderr, and stdout stays what was asked for."""

from threading import Event

import click
import pytest

from rtc_appservice.cli import options
from rtc_appservice.cli.options import Progress, telling


def test_long_work_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said while the work goes on, once."""
    told = Event()
    echo = click.echo

    def note(message: str, *, err: bool) -> None:
        echo(message, err=err)
        told.set()

    monkeypatch.setattr(options, "PROGRESS_SECONDS", 0.001)
    monkeypatch.setattr(click, "echo", note)
    with telling("counting"):
        assert told.wait(10)

    assert ("", "counting …\n") == tuple(capsys.readouterr())


def test_short_work_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor what failed."""
    with pytest.raises(ValueError, match="odd"), telling("counting"):
        raise ValueError("odd")

    assert ("", "") == tuple(capsys.readouterr())


def test_progress_is_told_once_a_second(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each second after the first, with what holds then."""
    seconds = [0.0]
    monkeypatch.setattr(options, "monotonic", lambda: seconds[0])
    progress = Progress()
    for moment in (0.5, 1.5, 1.6, 2.7):
        seconds[0] = moment
        progress.tell(f"at {moment}")

    assert "at 1.5\nat 2.7\n" == capsys.readouterr().err
