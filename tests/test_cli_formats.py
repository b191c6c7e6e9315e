"""What the commands print: the same report and call as text, JSON, CSV and Markdown, and the exit code of a gate."""

import asyncio
import csv
import json
from io import StringIO
from pathlib import Path

import pytest
from click.testing import Result

from rtc_appservice.store.pool import Pool
from tests.test_cli import call, here, installed
from tests.view.page_server import fill

__all__ = ["here", "installed"]


async def _say(*arguments: str) -> Result:
    """Run a command, which brings a loop of its own, beside the test's."""
    return await asyncio.to_thread(call, *arguments)


async def test_a_report_and_a_call_in_every_format(
    installed: Path, database: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All tell of the same call."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", database)
    await fill(pool, ["smart-switch"])
    since = ("report", "--since", "2026-01-01")
    as_json, as_csv, as_markdown = [await _say(*since, "--format", form) for form in ("json", "csv", "markdown")]
    (told,) = json.loads(as_json.stdout)["calls"]
    (row,) = csv.DictReader(StringIO(as_csv.stdout))
    one_csv, one_markdown = [await _say("call", told["call_id"], "--format", form) for form in ("csv", "markdown")]

    assert told["call_id"] == row["call_id"]
    assert f"`{told['call_id']}`" in as_markdown.stdout
    assert "@alice:lab.test" in {line["user_id"] for line in csv.DictReader(StringIO(one_csv.stdout))}
    assert one_markdown.stdout.startswith(f"## Call `{told['call_id']}`")


async def test_a_pipeline_can_wait_for_readiness(
    installed: Path, database: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--require-ready` prints the report as always, and fails unless the backup can go."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", database)
    asked = ("report", "--since", "2026-01-01", "--require-ready")
    await fill(pool, ["todevice-only"])
    too_few, without_gate = await _say(*asked), await _say(*asked[:-1])
    await pool.execute(
        """
        INSERT INTO call_session (room_key, started_at, call_id, homeserver_id, slot_id, ended_at, verdict, evidence,
                                  settled, report)
        SELECT room_key, started_at + n * interval '1 s', n, homeserver_id, slot_id, ended_at, verdict, evidence,
               settled, report
        FROM call_session, generate_series(1, 400) n
        """
    )
    enough = await _say(*asked)
    monkeypatch.setenv("RTC_APPSERVICE_DETECTION__READINESS_TARGET", "0.995")
    too_few_for_more = await _say(*asked)

    assert [1, 0, 0, 1] == [result.exit_code for result in (too_few, without_gate, enough, too_few_for_more)]
    assert "target 99.0%" in enough.stdout
    assert "target 99.5%" in too_few_for_more.stdout
    assert "NOT KNOWN YET" in too_few.stdout
    assert "READY: the room-event backup can be switched off." in enough.stdout
