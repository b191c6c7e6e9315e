"""The commands about the service's own device, on a real database."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from rtc_appservice.cli import main
from rtc_appservice.store.migrate import upgrade

ROOM = "!abc:example.org"
SECRET = "a secret of the deployment of the test"


@pytest.fixture
async def config_path(tmp_path: Path, empty_database: str) -> Path:
    """Give a configuration with a migrated database."""
    await upgrade(empty_database)
    path = tmp_path / "config.yaml"
    homeserver = {"address": "http://127.0.0.1:1", "domain": "example.org"}
    path.write_text(yaml.safe_dump({"secret": SECRET, "homeserver": homeserver, "database": {"url": empty_database}}))
    return path


def run(path: Path, *arguments: str) -> Result:
    """Run a command in a process of its own mind: it has an event loop to itself."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(CliRunner().invoke, main, [*arguments, "--config", str(path)]).result()


def rooms(path: Path) -> dict[str, tuple[bool, bool]]:
    """Give the rooms listed, each with whether it is wanted and whether the device takes part there."""
    listed = json.loads(run(path, "room", "list", "--format", "json").stdout)
    return {room["room_id"]: (room["wanted"], room["witness"]) for room in listed["rooms"]}


async def test_rooms(config_path: Path) -> None:
    """What is asked for is listed, and a running service follows it."""
    assert {} == rooms(config_path)
    assert 0 == run(config_path, "room", "add", ROOM).exit_code
    assert {ROOM: (True, False)} == rooms(config_path)
    assert 0 == run(config_path, "room", "witness", ROOM, "on").exit_code
    assert {ROOM: (True, True)} == rooms(config_path)
    assert 0 == run(config_path, "room", "remove", ROOM).exit_code
    assert {ROOM: (False, True)} == rooms(config_path)
    assert f"{ROOM}  leaving, takes part in calls\n" == run(config_path, "room", "list").stdout


async def test_what_is_no_room(config_path: Path) -> None:
    """An alias, and a room that the device is not in, are errors that say what to do."""
    alias = run(config_path, "room", "add", "#abc:example.org")
    unknown = run(config_path, "room", "witness", ROOM, "on")

    assert (1, 1) == (alias.exit_code, unknown.exit_code)
    assert "no room id" in alias.output
    assert "room add" in unknown.output


async def test_recovery_phrase(config_path: Path) -> None:
    """It follows from the deployment secret alone, which it does not show."""
    first, again = (run(config_path, "recovery-phrase").stdout for _ in range(2))

    assert first == again
    assert 6 == len(first.split("-"))
    assert SECRET not in first
