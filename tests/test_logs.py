import json
import logging
from collections.abc import Iterator

import pytest

from rtc_appservice import logs


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Give the test run its own logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)


def test_every_logger_writes_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """A library's line and ours have one form, with the fields given beside the text."""
    logs.configure("INFO", "json")
    logging.getLogger("some.library").warning("said %s", "so", extra={"rooms": 2})
    line = json.loads(capsys.readouterr().err)

    assert ("said so", "warning", "some.library", 2) == (line["event"], line["level"], line["logger"], line["rooms"])
    assert line["timestamp"].endswith("Z")


def test_a_traceback_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    """One line is one event, whatever went wrong."""
    logs.configure("INFO", "json")
    try:
        raise ValueError("x")
    except ValueError:
        logging.getLogger("a").exception("failed")
    (line,) = capsys.readouterr().err.splitlines()

    assert "ValueError: x" in json.loads(line)["exception"]


@pytest.mark.parametrize("name", ["mau.as", "mau.http", "aiohttp.access", "posthog", "sqlalchemy.engine", "urllib3"])
def test_loggers_that_would_write_bodies_stay_quiet(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At debug mautrix writes whole events and aiohttp the query with a token: nothing lets them."""
    logs.configure("DEBUG", "console")
    logging.getLogger(name).info("a body")
    logging.getLogger("rtc_appservice").debug("our own")

    assert "a body" not in (written := capsys.readouterr().err)
    assert "our own" in written
