"""The token of the pages: from the configuration, never printed, not to be guessed."""

from pathlib import Path

import pytest

from rtc_appservice.config import Metrics
from rtc_appservice.view.access import is_loopback

TOKEN = "a-token-long-enough"


def test_the_token_comes_from_the_file_too(tmp_path: Path) -> None:
    """One of the two, without the line break at its end."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")

    assert TOKEN == Metrics.model_validate({"token_file": tmp_path / "token"}).page_token
    assert TOKEN == Metrics.model_validate({"token": TOKEN}).page_token
    assert Metrics().page_token is None
    assert TOKEN not in repr(Metrics.model_validate({"token": TOKEN}))


@pytest.mark.parametrize("token", ["short", "with spaces in it, and long", "keine-Umlaute-äöü-darin"])
def test_a_token_must_be_fit(token: str) -> None:
    """One that can be guessed, or cannot stand in a header, is refused without being quoted."""
    with pytest.raises(ValueError, match="at least 16 characters, ASCII without spaces") as refused:
        Metrics.model_validate({"token": token})

    assert token not in str(refused.value.errors(include_input=False))  # type: ignore[attr-defined]


def test_token_and_file_are_too_much(tmp_path: Path) -> None:
    """Which of them counts would be a guess."""
    (tmp_path / "token").write_text(TOKEN)
    with pytest.raises(ValueError, match="keep one of them"):
        Metrics.model_validate({"token": TOKEN, "token_file": tmp_path / "token"})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.elsewhere.example", False),
        ("", False),
    ],
)
def test_what_is_loopback(host: str, loopback: bool) -> None:
    """Names that only resemble it are not."""
    assert loopback is is_loopback(host)
