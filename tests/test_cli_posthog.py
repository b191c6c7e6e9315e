"""`posthog check`, `diff`, `push` and `requeue` as an operator calls them."""

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result

from rtc_appservice.cli.main import main
from rtc_appservice.cli.posthog import KEY_VARIABLE
from rtc_appservice.config_file import write_config
from rtc_appservice.export.dashboards.check import load
from rtc_appservice.store import outbox
from rtc_appservice.store.outbox import OutboxRow
from rtc_appservice.store.pool import Pool

from .export.posthog_rest_standin import KEY, PROJECT, PostHogRestStandIn

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[PostHogRestStandIn]:
    """Give a PostHog stand-in that listens on a thread of its own: a command has its own event loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    standin = PostHogRestStandIn()
    asyncio.run_coroutine_threadsafe(standin.start(), loop).result(10)
    yield standin
    asyncio.run_coroutine_threadsafe(standin.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (KEY_VARIABLE, "POSTHOG_HOST", "POSTHOG_PROJECT_ID"):
        monkeypatch.delenv(name, raising=False)


def call(command: str, *arguments: str, **environment: str) -> Result:
    """Run `posthog COMMAND`."""
    return CliRunner().invoke(main, ("posthog", command, *arguments), env=environment)


def in_project(server: PostHogRestStandIn) -> dict[str, str]:
    """Give the environment that says which project, with the key."""
    return {"POSTHOG_HOST": server.address, "POSTHOG_PROJECT_ID": PROJECT, KEY_VARIABLE: KEY}


def test_check() -> None:
    """What is shipped can be pushed, and nobody is asked."""
    result = call("check")

    assert (0, "") == (result.exit_code, result.stderr)
    assert "2 dashboards" in result.stdout


def test_check_tells_faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each fault is a line on stderr, and the code is 1; nothing faulty is pushed."""
    fault = {"kind": "InsightVizNode", "source": {"kind": "TrendsQuery", "series": [{"kind": "EventsNode"}]}}
    layout = {"x": 0, "y": 0, "w": 6, "h": 5}
    tile = {"slug": "t", "name": "t", "description": "t", "layout": layout, "query": fault}
    (tmp_path / "a.json").write_text(json.dumps({"slug": "a", "name": "a", "description": "a", "tiles": [tile]}))
    dashboards = load(tmp_path)
    monkeypatch.setattr("rtc_appservice.export.dashboards.check.load", lambda: dashboards)

    checked = call("check")
    pushed = call("push", "--host", "http://127.0.0.1:9", "--project", "1", **{KEY_VARIABLE: KEY})

    assert (1, "") == (checked.exit_code, checked.stdout)
    assert "a/t: Object missing required field `event`" in checked.stderr
    assert 1 == pushed.exit_code
    assert "a/t: Object missing" in pushed.stderr


def test_push_diff_push(server: PostHogRestStandIn) -> None:
    """A diff has differences until a push, then none; the second push says so and changes nothing."""
    environment = in_project(server)

    before = call("diff", **environment)
    pushed = call("push", **environment)
    written = len(server.writes)
    after = call("diff", **environment)
    again = call("push", **environment)

    assert 1 == before.exit_code
    assert before.stdout.startswith("+ dashboard ")
    assert 0 == pushed.exit_code
    assert (0, "no differences\n") == (after.exit_code, after.stdout)
    assert (0, "no differences\n") == (again.exit_code, again.stdout)
    assert written == len(server.writes)
    assert "rollout: " in again.stderr  # how far it is


def test_diff_as_text_and_json(server: PostHogRestStandIn) -> None:
    """One changed title is one object, with what is stored and what is wanted."""
    environment = in_project(server)
    call("push", **environment)
    (stored,) = (each for each in server.live("insights") if "rollout/causes" in each["description"])
    wanted, stored["name"] = stored["name"], "Changed by hand"

    text = call("diff", **environment)
    (change,) = json.loads(call("diff", "--format", "json", **environment).stdout)

    assert [
        f"~ insight rollout/causes ({stored['id']}): {wanted}",
        f'    name: "Changed by hand" -> "{wanted}"',
    ] == text.stdout.splitlines()
    assert ("update", "insight", "rollout/causes") == (change["action"], change["kind"], change["slug"])
    assert [{"path": "name", "stored": "Changed by hand", "wanted": wanted}] == change["differences"]
    assert "[]\n" == [call("push", **environment), call("diff", "--format", "json", **environment)][1].stdout


def test_the_key_comes_from_a_file(server: PostHogRestStandIn, tmp_path: Path) -> None:
    """A key file wins over the environment; it is never said, nor taken as an argument."""
    (tmp_path / "key").write_text(f"{KEY}\n")
    arguments = ("--host", server.address, "--project", PROJECT)

    good = call("diff", *arguments, "--key-file", str(tmp_path / "key"), **{KEY_VARIABLE: "phx_wrong"})
    bad = call("diff", *arguments, **{KEY_VARIABLE: "phx_wrong"})

    assert (1, True) == (good.exit_code, good.stdout.startswith("+ dashboard"))
    assert (1, "") == (bad.exit_code, bad.stdout)
    assert "HTTP 401" in bad.stderr
    assert "phx_wrong" not in bad.output


def test_usage(server: PostHogRestStandIn, tmp_path: Path) -> None:
    """What is missing is said with where to give it."""
    (tmp_path / "empty").write_text("")
    project = ("--host", server.address, "--project", PROJECT)
    cases = [
        ((), 2, "--host"),
        (("--host", server.address), 2, "--project"),
        (("--host", "eu.posthog.com", "--project", PROJECT), 2, "must be a URL"),
        (("--host", server.address, "--project", "../7"), 2, "--project"),
        (project, 2, KEY_VARIABLE),
        ((*project, "--key-file", str(tmp_path / "absent")), 1, "absent cannot be read"),
        ((*project, "--key-file", str(tmp_path / "empty")), 1, "is empty"),
    ]
    for arguments, code, words in cases:
        result = call("push", *arguments)

        assert (code, "") == (result.exit_code, result.stdout)
        assert words in result.stderr
    assert 0 == server.asked


async def test_requeue(database: str, pool: Pool, tmp_path: Path) -> None:
    """Events that were set aside wait again."""
    path = tmp_path / "config.yaml"
    write_config(path, address="http://hs:8008", domain="example.org")
    row = OutboxRow(uuid=UUID(int=1), event="RtcCallEnded", distinct_id="call:1", timestamp=NOON, properties={})
    async with pool.acquire() as conn:
        await outbox.put(conn, [row], NOON)
        await outbox.dead(conn, [row.uuid])

    environment = {"RTC_APPSERVICE_DATABASE__URL": database}
    result = await asyncio.to_thread(call, "requeue", "--config", str(path), **environment)

    assert (0, "1 events wait to be sent again\n") == (result.exit_code, result.stdout)
    async with pool.acquire() as conn:
        assert (1, 0) == ((await outbox.pending(conn)).pending, (await outbox.pending(conn)).dead)
