import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from rtc_appservice import __version__
from rtc_appservice.cli.main import main
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import ServerName
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.store.migrate import head
from rtc_appservice.store.pool import open_pool

RECORDINGS = Path(__file__).parent / "data" / "recordings"


def call(*arguments: str, stdin: bytes | None = None) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments, input=stdin)


def run_in_process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does: `run` sets up logs and signals for its whole process."""
    command = [sys.executable, "-m", "rtc_appservice", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def _commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def installed(here: Path) -> Path:
    """Give a folder with a configuration and a registration, as the commands write them."""
    assert call("config", "--domain", "example.org", "--address", "http://localhost:8008").exit_code == 0
    assert call("registration", "--scope", "users").exit_code == 0
    return here


@pytest.mark.parametrize("path", list(_commands()), ids=" ".join)
def test_every_command_has_help_with_an_example(path: tuple[str, ...]) -> None:
    """The example calls that very command."""
    result = call(*path, "--help")

    assert 0 == result.exit_code
    assert re.search(rf"Example:\n +rtc-appservice {' '.join(path)}", result.output)


def test_the_module_is_the_command() -> None:
    """`python -m rtc_appservice` works where the script is not on the path."""
    result = run_in_process("--version")

    assert f"rtc-appservice, version {__version__}\n" == result.stdout


def test_usage_is_2_and_failure_is_1(here: Path) -> None:
    """Both speak on stderr, without a traceback."""
    for arguments, code in ((("report", "--days", "none"), 2), (("nonsense",), 2), (("check",), 1)):
        result = call(*arguments)
        assert (code, "") == (result.exit_code, result.stdout)
        assert "Error: " in result.stderr
        assert "Traceback" not in result.stderr


# --- setting up -------------------------------------------------------------------------------


def test_what_is_written_passes_the_check(installed: Path) -> None:
    """Two commands make an installation."""
    result = call("check")

    assert 0 == result.exit_code
    assert "to-device envelopes are shown" in result.stdout


def test_a_configuration_without_a_homeserver_is_not_run_with(here: Path) -> None:
    """What is written without options says what to put in, and so do the commands that would use it."""
    written = call("config")
    checked, asked = call("check"), call("registration", "--scope", "users")

    assert "put homeserver.address and homeserver.domain in" in written.stderr
    for result in (checked, asked):
        assert (1, "") == (result.exit_code, result.stdout)
        assert "homeserver.domain: is still the placeholder" in result.stderr


def test_a_homeserver_that_cannot_be_is_not_written(here: Path) -> None:
    """Both are said at once, by option, before there is a file that no command would take."""
    result = call("config", "--domain", "https://example.org", "--address", "localhost:8008")

    assert 1 == result.exit_code
    assert "--address: must be a URL" in result.stderr
    assert "--domain: must be a server name" in result.stderr
    assert [] == list(here.iterdir())


def test_check_says_what_is_shown(installed: Path) -> None:
    """Also where that is nothing: such a service would wait for ever."""
    path = installed / "registration.yaml"
    everybody = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(everybody | {"namespaces": {"users": [], "rooms": []}}))
    nothing = call("check")
    path.write_text(yaml.safe_dump(everybody | {"namespaces": {"rooms": [{"regex": "!.*"}]}}))
    rooms = call("check")

    assert (0, 0, "") == (nothing.exit_code, rooms.exit_code, rooms.stderr)
    assert "only rooms of the service's own users are shown" in nothing.stdout
    assert "Warning: " in nothing.stderr and "it is shown nothing of others" in nothing.stderr
    assert "room events are shown, to-device envelopes are not" in rooms.stdout


def test_a_device_that_cannot_be_is_said_before_the_start(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what it needs `check` and `run` fail and say how to install it; nobody who may invite it is a warning."""
    monkeypatch.setenv("RTC_APPSERVICE_AUDITOR__ENABLED", "true")
    uninvited = call("check")
    monkeypatch.setenv("RTC_APPSERVICE_AUDITOR__INVITED_BY", "example.org")
    invited = call("check")
    monkeypatch.setitem(sys.modules, "olm", None)
    for command in ("check", "run"):
        result = call(command)
        assert 1 == result.exit_code
        assert "auditor.enabled needs `pip install 'rtc-appservice[encryption]'`" in result.stderr

    assert (0, 0, "") == (uninvited.exit_code, invited.exit_code, invited.stderr)
    assert "Warning: config.yaml: auditor.invited_by: is empty" in uninvited.stderr


def test_check_and_run_refuse_the_sample(installed: Path) -> None:
    """Placeholder tokens are known to everybody; the message says how to get others."""
    sample = Path(__file__).parent.parent / "registration.yaml"
    (installed / "registration.yaml").write_text(sample.read_text())
    for command in ("check", "run"):
        result = call(command)
        assert 1 == result.exit_code
        assert "as_token: is the sample's placeholder" in result.stderr
        assert "rtc-appservice registration" in result.stderr


def test_nothing_is_overwritten(installed: Path) -> None:
    """A second call of either command fails and leaves the file as it is."""
    before = [path.read_text() for path in sorted(installed.iterdir())]
    for arguments in (("config",), ("registration", "--scope", "rooms")):
        result = call(*arguments)
        assert 1 == result.exit_code
        assert "never overwritten" in result.stderr

    assert before == [path.read_text() for path in sorted(installed.iterdir())]


def test_a_registration_needs_no_configuration(here: Path) -> None:
    """With the server name and the address given, it goes to stdout alone."""
    result = call("registration", "--scope", "rooms", "--domain", "a.org", "--url", "http://a:1", "--output", "-")

    assert 0 == result.exit_code
    assert "url: 'http://a:1'" in result.stdout
    assert [] == list(here.iterdir())


def test_a_port_in_use_is_named(installed: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`run` says which port, by whom, and what to change."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", database)
        monkeypatch.setenv("RTC_APPSERVICE_METRICS__ENABLED", "false")
        monkeypatch.setenv("RTC_APPSERVICE_APPSERVICE__PORT", port)
        result = run_in_process("run")

    assert 1 == result.returncode
    assert f"Error: Port {port} on 127.0.0.1 is in use by" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", ["prometheus", "grafana"])
def test_monitoring_files_are_written(here: Path, kind: str) -> None:
    """Their paths are printed; an edited one is kept unless it may be replaced."""
    written = [Path(line) for line in call(kind, "out").stdout.splitlines()]
    written[0].write_text("mine")
    refused, replaced = call(kind, "out"), call(kind, "out", "--replace")

    assert all(path.is_file() for path in written)
    assert (1, 0) == (refused.exit_code, replaced.exit_code)
    assert f"{written[0]}\n" == replaced.stdout


@pytest.mark.parametrize("kind", ["prometheus", "grafana"])
def test_monitoring_files_that_are_there_are_said_to_be(here: Path, kind: str) -> None:
    """Where there is nothing to write, that is said, and nothing is named as written."""
    call(kind, "out")
    again = call(kind, "out")

    assert (0, "") == (again.exit_code, again.stdout)
    assert "out has every file already" in again.stderr


def test_an_empty_call_id_is_a_usage_error(here: Path) -> None:
    """It would be the beginning of every id."""
    result = call("call", "")

    assert 2 == result.exit_code
    assert "is empty" in result.stderr


# --- the database -----------------------------------------------------------------------------


def test_db_without_a_url_is_our_own(installed: Path) -> None:
    """PostgreSQL is started in the stated folder, migrated, and gone at the end; the data stays."""
    upgraded = call("db", "upgrade")
    after = call("db", "current", "--format", "json")

    assert 0 == upgraded.exit_code
    assert (0, {"current": head(), "head": head()}) == (after.exit_code, json.loads(after.stdout))
    assert not (installed / "postgresql" / "postmaster.pid").exists()


@pytest.mark.parametrize(
    "command",
    [("db", "current"), ("report",), ("call", "e8ee4c59"), ("replay",), ("room", "list"), ("posthog", "requeue")],
    ids=" ".join,
)
def test_what_reads_makes_no_database(installed: Path, command: tuple[str, ...]) -> None:
    """Without a URL and before the first `run` there is nothing to read, and nothing is made by asking."""
    result = call(*command)

    assert (1, "") == (result.exit_code, result.stdout)
    assert f"database.embedded_path names {installed / 'postgresql'}" in result.stderr
    assert "`rtc-appservice run` makes one there" in result.stderr
    assert ["config.yaml", "registration.yaml"] == sorted(path.name for path in installed.iterdir())


def test_a_database_that_is_not_there_is_said(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the password that the URL holds."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", "postgresql://u:hunter2@127.0.0.1:1/d")
    for command in (("db", "upgrade"), ("db", "current"), ("report",), ("run",)):
        result = run_in_process(*command)
        assert 1 == result.returncode
        assert "Error: The database cannot be reached (ConnectionRefusedError: " in result.stderr
        assert "is database.url right?" in result.stderr
        assert "Traceback" not in result.stderr
        assert "hunter2" not in result.stdout + result.stderr


# --- reports ----------------------------------------------------------------------------------


def test_a_report_of_an_empty_database(installed: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was seen, and it says so instead of failing."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", database)
    result = call("report", "--format", "json")
    report = json.loads(result.stdout)

    assert (0, 0, "insufficient_data") == (result.exit_code, report["totals"]["calls"], report["readiness"]["verdict"])
    assert "There is nothing from other.org" in call("report", "--homeserver", "other.org").stderr


def test_replay_ends_and_counts(installed: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every room is projected anew, by the command as a user runs it, and it says how many."""

    async def fill() -> None:
        async with await open_pool(database, 2) as pool:
            name = ServerName("example.org")
            intake = TransactionIntake(pool, name, TransactionReader(name, b"a secret of the tests"))
            await intake.open()
            for line in (RECORDINGS / "smart-switch" / "transactions.jsonl").read_text().splitlines():
                await intake.take(partial(_ready, json.dumps(json.loads(line)["body"]).encode()))

    asyncio.run(fill())
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", database)
    done = run_in_process("replay")

    assert (0, "2 rooms projected anew\n", "") == (done.returncode, done.stdout, done.stderr)


async def _ready(body: bytes) -> bytes:
    return body


def test_report_asks_for_the_migration(installed: Path, empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older schema is named with the command that helps."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", empty_database)
    result, current = call("report"), call("db", "current", "--format", "json")

    assert (1, {"current": None, "head": head()}) == (current.exit_code, json.loads(current.stdout))
    assert 1 == result.exit_code
    assert "The database is empty" in result.stderr
    assert "rtc-appservice db upgrade" in result.stderr


@pytest.mark.parametrize(("name", "verdict"), [("smart-switch", "mixed"), ("legacy-only", "room_event")])
def test_audit_prints_what_was_recorded(name: str, verdict: str) -> None:
    """The same report for a file and for standard input, as text and as JSON."""
    path = RECORDINGS / name / "transactions.jsonl"
    from_file = call("audit", str(path), "--format", "json")
    from_stdin = call("audit", "-", "--format", "json", stdin=path.read_bytes())
    text = call("audit", str(path))

    assert [0, 0, 0] == [result.exit_code for result in (from_file, from_stdin, text)]
    (audited,) = json.loads(from_file.stdout)["calls"]
    assert verdict == audited["verdict"]
    assert json.loads(from_file.stdout)["totals"] == json.loads(from_stdin.stdout)["totals"]
    assert verdict in text.stdout


def test_audit_warns_of_a_homeserver_that_is_not_in_the_recording() -> None:
    """With a mistyped name nobody is local, and the report would say that little was seen."""
    path = str(RECORDINGS / "smart-switch" / "transactions.jsonl")
    wrong = call("audit", path, "--homeserver", "lab.tset", "--format", "json")
    right = call("audit", path, "--homeserver", "lab.test", "--format", "json")

    assert (0, 0, "") == (wrong.exit_code, right.exit_code, right.stderr)
    assert "is of lab.tset, so no user in it counts as local" in wrong.stderr
    assert "it is of lab.test" in wrong.stderr
    assert "calls" in json.loads(wrong.stdout)


@pytest.mark.parametrize("command", ["audit", "report"])
@pytest.mark.parametrize("form", ["json", "csv"])
def test_calls_are_left_out_of_nothing_that_programs_read(installed: Path, command: str, form: str) -> None:
    """`--calls` is for people; asked for with another format it is a usage error, not passed over."""
    path = str(RECORDINGS / "smart-switch" / "transactions.jsonl")
    refused = call(command, *([path] if command == "audit" else []), "--calls", "1", "--format", form)
    text = call("audit", path, "--calls", "0")

    assert (2, "") == (refused.exit_code, refused.stdout)
    assert f"is for text and Markdown; {form} has all calls" in refused.stderr
    assert "Earlier calls left out: 1; " in text.stdout


def test_audit_names_the_bad_line(here: Path) -> None:
    """A file that is not a recording fails with its line."""
    (here / "x.jsonl").write_text("no\n")
    result = call("audit", "x.jsonl")

    assert (1, "") == (result.exit_code, result.stdout)
    assert "Error: x.jsonl, line 1: not JSON" in result.stderr


def test_check_compares_the_domain_with_the_registration(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A registration for another homeserver is said; a URL is no server name."""
    same = call("check")
    monkeypatch.setenv("RTC_APPSERVICE_HOMESERVER__DOMAIN", "other.test")
    other = call("check")
    monkeypatch.setenv("RTC_APPSERVICE_HOMESERVER__DOMAIN", "https://example.org/")
    url = call("check")

    assert (0, "") == (same.exit_code, same.stderr)
    assert "registration.yaml: namespaces.users: none names other.test" in other.stderr
    assert (1, True) == (url.exit_code, "homeserver.domain: must be a server name such as example.org" in url.stderr)
