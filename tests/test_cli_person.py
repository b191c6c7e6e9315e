"""The commands about one user, on a real database with a recorded call."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from rtc_appservice import registration
from rtc_appservice.cli.main import main
from rtc_appservice.store.pool import Pool

from .test_person import everything, played, users_of
from .test_projector import SECRET

SCENARIO = "smart-switch"


class Installation:
    """A configuration, and who is in the database it names."""

    def __init__(self, path: Path, user: str, pool: Pool) -> None:
        self.path = path
        self.user = user
        self.pool = pool

    def run(self, *arguments: str) -> Result:
        """Run a command; it has an event loop to itself."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(CliRunner().invoke, main, [*arguments, "--config", str(self.path)]).result()

    def about(self, user: str) -> Any:
        """Give what is held of a user."""
        result = self.run("about", user, "--format", "json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


@pytest.fixture
async def installation(tmp_path: Path, database: str, pool: Pool) -> Installation:
    """Give a configuration for a database with a recorded call."""
    service = await played(pool, SCENARIO)
    (tmp_path / "registration.yaml").write_text(
        registration.render(registration.Scope.USERS, domain="lab.test", url="http://127.0.0.1:1")
    )
    config = {
        "secret": SECRET.decode(),
        "homeserver": {"address": "http://127.0.0.1:1", "domain": "lab.test"},
        "appservice": {"registration": str(tmp_path / "registration.yaml")},
        "database": {"url": database},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return Installation(tmp_path / "config.yaml", users_of(await service.calls())[0], pool)


async def test_about(installation: Installation) -> None:
    """Every table with the user in it, the pseudonyms PostHog may have, and of calls the user's own part only."""
    about = installation.about(installation.user)

    (held,) = about["held"]
    assert (installation.user, "lab.test") == (about["user_id"], held["homeserver"])
    names = {"observation", "call_session", "finding", "stint", "to_device_history", "history_ledger"}
    assert names <= {table for table, rows in held["tables"].items() if rows}
    (call,) = held["tables"]["call_session"]
    assert [installation.user] == [each["user_id"] for each in call["participants"]]
    assert call["room_id"].startswith("!")
    assert 1 == len(held["posthog"]["users"]) == len(held["posthog"]["distinct_ids"])

    text = installation.run("about", installation.user).output
    assert f"held about {installation.user} at lab.test:" in text
    assert held["posthog"]["users"][0] in text
    assert held["devices"][0] in text


async def test_about_nobody(installation: Installation) -> None:
    """Nothing held is an answer; what is no user id, or no homeserver, is an error that says what is right."""
    nobody = installation.run("about", "@nobody:lab.test")
    odd = installation.run("about", "nobody")
    elsewhere = installation.run("about", installation.user, "--homeserver", "elsewhere.test")

    assert (0, "nothing is held about @nobody:lab.test\n") == (nobody.exit_code, nobody.output)
    assert {"user_id": "@nobody:lab.test", "held": []} == installation.about("@nobody:lab.test")
    assert (1, "Error: 'nobody' is no user id; one looks like @ann:example.org\n") == (odd.exit_code, odd.output)
    assert (1, True) == (elsewhere.exit_code, "homeservers seen: lab.test" in elsewhere.output)


async def test_forget(installation: Installation) -> None:
    """It tells what will be replaced and under which pseudonyms PostHog has it, and does nothing unasked."""
    before = await everything(installation.pool)
    pseudonym = installation.about(installation.user)["held"][0]["posthog"]["users"][0]

    unasked = installation.run("forget", installation.user)
    assert (1, True) == (unasked.exit_code, "say --yes" in unasked.output)
    assert pseudonym in unasked.output
    assert before == await everything(installation.pool)

    done = installation.run("forget", installation.user, "--yes")
    assert 0 == done.exit_code, done.output
    assert "a user was forgotten: " in done.output
    assert installation.user not in json.dumps(await everything(installation.pool))

    again = installation.run("forget", installation.user, "--yes")
    assert (0, f"nothing is held about {installation.user}\n") == (again.exit_code, again.output)


async def test_a_replay_after_it_changes_nothing(installation: Installation) -> None:
    """The command, too, leaves all as a projection would find it."""
    installation.run("forget", installation.user, "--yes")
    before = await everything(installation.pool)

    assert 0 == installation.run("replay").exit_code

    after = await everything(installation.pool)
    del before["public.projection"], after["public.projection"]  # counts its looks
    assert before == after
