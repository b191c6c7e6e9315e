"""The command line: each command reads its options and calls what does the work. The only composition root."""

import asyncio
import secrets
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Literal

import click

from rtc_appservice import __version__, registration
from rtc_appservice.cli_doctor import doctor
from rtc_appservice.cli_options import Commands, Format, config_option, example, format_option
from rtc_appservice.cli_person import about_user, forget_user
from rtc_appservice.cli_posthog import posthog
from rtc_appservice.cli_room import renew_device, room, show_recovery_phrase
from rtc_appservice.config import Config
from rtc_appservice.config_file import load_config, write_config
from rtc_appservice.core.audit import RecordedTransaction
from rtc_appservice.core.model import Report
from rtc_appservice.errors import ConfigError
from rtc_appservice.files import write_secret
from rtc_appservice.registration import Registration, Scope

_PROGRESS_SECONDS = 1.0

#: How many server names a warning names.
_NAMED = 3


ReportFormat = Literal["text", "json", "csv", "markdown"]

_report_format_option = click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "csv", "markdown"]),
    default="text",
    show_default=True,
    help="How to print.",
)


_calls_option = click.option(
    "--calls",
    type=click.IntRange(min=0),
    help="How many of the newest calls text and Markdown tell of.  [default: 10 in text, 30 in Markdown]",
)


_replace_option = click.option("--replace", is_flag=True, help="Replace files that are there with other content.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rtc-appservice")
def main() -> None:
    """Audits how MatrixRTC media keys travel: as room events or by to-device messages."""


main.add_command(doctor)
main.add_command(posthog)
main.add_command(about_user)
main.add_command(forget_user)
main.add_command(room)
main.add_command(show_recovery_phrase)
main.add_command(renew_device)


# --- the service ------------------------------------------------------------------------------


@main.command()
@config_option
@example("rtc-appservice run --config /data/config.yaml")
def run(config_path: Path) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    from rtc_appservice import logs, service

    config, registered = _checked(config_path)
    config.auditor.require()
    logs.configure(config.logging.level, config.logging.format)
    # asyncio takes over in a moment; until then, and while PostgreSQL stops, a SIGTERM must not leave it behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with service.database(config.database, make=True) as dsn:
        asyncio.run(service.run(config, registered, dsn))


@main.command()
@click.option("--exit", "exit_after_report", is_flag=True, help="End after the report: 0 if it is as expected.")
@example("rtc-appservice demo --exit")
def demo(exit_after_report: bool) -> None:
    """Play three calls on a real homeserver on this machine and print what was found."""
    try:
        from rtc_appservice.demo.run import run_demo
    except ImportError as error:
        raise ConfigError(f"The demo needs `pip install 'rtc-appservice[demo]'` ({error.name} is missing)") from error
    sys.exit(asyncio.run(run_demo(exit_after_report=exit_after_report, out=sys.stdout)))


# --- setting up -------------------------------------------------------------------------------


@main.command("registration")
@click.option("--scope", type=click.Choice([scope.value for scope in Scope]), required=True, help="What to be shown.")
@click.option("--pilot-regex", help="The users of the scope `pilot`, as a regular expression for user ids.")
@click.option("--domain", help="The homeserver's server name.  [default: from the configuration]")
@click.option("--url", help="Where the homeserver reaches the service.  [default: from the configuration]")
@click.option("-o", "--output", default="registration.yaml", show_default=True, help="File to write; - for stdout.")
@config_option
@example("rtc-appservice registration --scope pilot --pilot-regex '@(ann|bob):example\\.org'")
def write_registration(
    scope: str, pilot_regex: str | None, domain: str | None, url: str | None, output: str, config_path: Path
) -> None:
    """Write a registration with fresh tokens for a scope, with comments on what it sees and costs."""
    if domain is None or url is None:
        config = load_config(config_path)
        domain, url = domain or config.homeserver.domain, url or config.appservice.address
    text = registration.render(Scope(scope), domain=domain, url=url, pilot_regex=pilot_regex)
    if output == "-":
        click.echo(text, nl=False)
    else:
        write_secret(Path(output), text)
        click.echo(f"{output} is written; name it in app_service_config_files and in appservice.registration", err=True)


@main.command("config")
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False), default="config.yaml")
@click.option("--address", help="Where to reach the homeserver's client API.")
@click.option("--domain", help="The homeserver's server name.")
@example("rtc-appservice config --domain example.org --address http://localhost:8008")
def new_config(path: Path, address: str | None, domain: str | None) -> None:
    """Write a commented configuration with a fresh secret to PATH; never overwrites."""
    write_config(path, address=address, domain=domain)
    missing = [f"homeserver.{key}" for key, value in (("address", address), ("domain", domain)) if value is None]
    first = f"put {' and '.join(missing)} in" if missing else "look through it"
    click.echo(f"{path} is written; {first}, then run `rtc-appservice registration`", err=True)


@main.command()
@config_option
@example("rtc-appservice check --config /data/config.yaml")
def check(config_path: Path) -> None:
    """Say whether the configuration and the registration it names can be used."""
    config, registered = _checked(config_path)
    config.auditor.require()
    path = config.appservice.registration
    for doubt in config.auditor.doubts():
        click.echo(f"Warning: {config_path}: {doubt}", err=True)
    for doubt in registered.doubts(domain=config.homeserver.domain, port=config.appservice.port):
        click.echo(f"Warning: {path}: {doubt}", err=True)
    click.echo(f"{config_path} and {path} can be used; {registered.shown}")


def _checked(config_path: Path) -> tuple[Config, Registration]:
    """Load the configuration and its registration; ConfigError if one of them is not fit to run with."""
    config = load_config(config_path)
    return config, registration.load_usable(config.appservice.registration)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@_replace_option
@example("rtc-appservice prometheus /etc/prometheus")
def prometheus(folder: Path, replace: bool) -> None:
    """Write rules, alerts and a sample configuration for Prometheus to FOLDER, and name what was written."""
    from rtc_appservice.view.monitoring import write_monitoring

    for path in write_monitoring("prometheus", folder, replace=replace):
        click.echo(path)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@_replace_option
@example("rtc-appservice grafana /var/lib/grafana/dashboards")
def grafana(folder: Path, replace: bool) -> None:
    """Write the boards for Grafana to FOLDER, and name what was written."""
    from rtc_appservice.view.monitoring import write_monitoring

    for path in write_monitoring("grafana", folder, replace=replace):
        click.echo(path)


# --- the database -----------------------------------------------------------------------------


@main.group(cls=Commands)
def db() -> None:
    """The database schema: `upgrade` brings it to the newest migration, `current` says where it is, `sql` prints it."""


@db.command("upgrade")
@config_option
@example("rtc-appservice db upgrade")
def db_upgrade(config_path: Path) -> None:
    """Bring the database to the newest migration; `run` does the same at start."""
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate

    with database(load_config(config_path).database, make=True) as dsn:
        click.echo(f"the database is at {asyncio.run(migrate.upgrade(dsn))}")


@db.command("current")
@config_option
@format_option
@example("rtc-appservice db current --format json")
def db_current(config_path: Path, form: Format) -> None:
    """Name the migration that the database is at, and the newest one; exit 1 if they differ."""
    import msgspec

    from rtc_appservice.service import database
    from rtc_appservice.store import migrate

    with database(load_config(config_path).database) as dsn:
        current, head = asyncio.run(migrate.current(dsn)), migrate.head()
    if form == "json":
        click.echo(msgspec.json.encode({"current": current, "head": head}))
    else:
        click.echo(f"current {current or 'none'}\nnewest  {head}")
    sys.exit(0 if current == head else 1)


@db.command("sql")
@click.option("--from", "since", metavar="REVISION", help="Where the database is at.  [default: empty]")
@example("rtc-appservice db sql --from 0005 > schema.sql")
def db_sql(since: str | None) -> None:
    """Print the migrations as SQL, for a database whose schema the service's own account may not change."""
    from rtc_appservice.store import migrate

    click.echo(migrate.sql(since), nl=False)


# --- reports ----------------------------------------------------------------------------------


@main.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--homeserver", help="Its server name.  [default: the one most users of the recording have]")
@click.option(
    "--scope",
    type=click.Choice(["auto", "rooms", "users"]),
    default="auto",
    show_default=True,
    help="Whether to-device envelopes between users were recorded; auto looks for them.",
)
@click.option(
    "--account",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The account of a device that was in the calls: what was sent to it is decrypted.",
)
@_calls_option
@_report_format_option
@example("rtc-appservice audit transactions.jsonl --format json")
def audit(
    files: tuple[str, ...],
    homeserver: str | None,
    scope: str,
    account: Path | None,
    calls: int | None,
    form: ReportFormat,
) -> None:
    """
    Audit recorded transactions offline and print the report.

    Each line of a FILE is a JSON object with `body`, the transaction, and `received_at` or `recv_ts`, in milliseconds
    or RFC 3339. FILE can be - for standard input. An account is a JSON object with `user_id`, `device_id`, and the Olm
    account of before the recording as libolm writes it, `pickle` and `pickle_key`.
    """
    from rtc_appservice.core.audit import audit as audit_transactions
    from rtc_appservice.core.audit import servers_of
    from rtc_appservice.core.wording import plain
    from rtc_appservice.recording import read_recordings

    _refuse_calls(calls, form)
    transactions = list(_with_progress(read_recordings(files)))
    if homeserver is not None and homeserver not in (servers := servers_of(transactions)):
        click.echo(
            f"Warning: nothing in {', '.join(files)} is of {homeserver}, so no user in it counts as local and little"
            f" can be told; it is of {', '.join(map(plain, servers[:_NAMED])) or 'no server'}",
            err=True,
        )
    # Nothing keyed leaves this process in a form to compare, so a secret of its own is enough.
    secret = secrets.token_bytes(32)
    if account is None:
        _print_report(audit_transactions(transactions, homeserver=homeserver, scope=scope, secret=secret), form, calls)
        return
    try:
        from rtc_appservice.intake.account import load_account, open_recording
    except ImportError as error:
        raise ConfigError(
            f"--account needs `pip install 'rtc-appservice[encryption]'` ({error.name} is missing)"
        ) from error
    found = open_recording(transactions, load_account(account))
    report = audit_transactions(
        found.transactions,
        homeserver=homeserver or found.homeserver,
        scope=scope,
        secret=secret,
        witness=found.device,
        gaps=found.gaps,
    )
    _print_report(report, form, calls)


@main.command("report")
@config_option
@click.option("--days", type=click.IntRange(min=1), default=28, show_default=True, help="How far back.")
@click.option("--since", type=click.DateTime(), help="From this time on (UTC), instead of --days.")
@click.option("--homeserver", help="This one only.  [default: all in the database]")
@click.option("--require-ready", is_flag=True, help="Exit 1 unless the backup can be switched off.")
@_calls_option
@_report_format_option
@example("rtc-appservice report --days 7 --format json")
def print_report(
    config_path: Path,
    days: int,
    since: datetime | None,
    homeserver: str | None,
    require_ready: bool,
    calls: int | None,
    form: ReportFormat,
) -> None:
    """Print calls, fallbacks, blockers and readiness from the database."""
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate
    from rtc_appservice.store.pool import open_pool
    from rtc_appservice.view.stored import read_report

    _refuse_calls(calls, form)
    now = datetime.now(UTC)
    start = now - timedelta(days=days) if since is None else since.replace(tzinfo=UTC)

    async def read(dsn: str) -> Report:
        await migrate.require_head(dsn)
        async with await open_pool(dsn, 1) as pool:
            return await read_report(pool, since=start, homeserver=homeserver, now=now)

    with database(load_config(config_path).database) as dsn:
        report = asyncio.run(read(dsn))
    _print_report(report, form, calls)
    if require_ready and report.readiness.verdict != "ready":
        sys.exit(1)


@main.command("call")
@click.argument("call_id", metavar="ID")
@config_option
@_report_format_option
@example("rtc-appservice call e8ee4c59")
def print_call(call_id: str, config_path: Path, form: ReportFormat) -> None:
    """
    Tell one call in full: who owed whom which key, what came, when, and by which transport.

    ID is the call id of a report, or its beginning.
    """
    from rtc_appservice.core.explain import CallExplanation
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate
    from rtc_appservice.store.pool import open_pool
    from rtc_appservice.view import call, tabular
    from rtc_appservice.view.stored_call import explain_call

    if not call_id:
        raise click.BadParameter("is empty; `rtc-appservice report` lists the ids", param_hint="ID")
    config = load_config(config_path)

    async def read(dsn: str) -> CallExplanation:
        await migrate.require_head(dsn)
        async with await open_pool(dsn, 1) as pool:
            return await explain_call(pool, call_id, config.detection.settings())

    with database(config.database) as dsn:
        told = asyncio.run(read(dsn))
    renderers = {"json": call.render_call_json, "csv": tabular.call_csv, "markdown": tabular.call_markdown}
    click.echo(renderers.get(form, call.render_call_text)(told), nl=form == "text")


@main.command("replay")
@config_option
@example("rtc-appservice replay")
def replay_all(config_path: Path) -> None:
    """Rebuild calls and findings from the observations, as far back as those are kept; what was sent stays sent."""
    from rtc_appservice import service

    config, registered = _checked(config_path)
    with service.database(config.database) as dsn:
        replayed = asyncio.run(service.replay_all(config, registered, dsn))
    click.echo(f"{replayed.projected} rooms projected anew")
    if replayed.failed:
        click.echo(f"{replayed.failed} rooms could not be projected and stay as they were; see the warnings", err=True)
        sys.exit(1)


def _refuse_calls(calls: int | None, form: ReportFormat) -> None:
    """Raise a usage error where calls would be left out of what programs read."""
    if calls is not None and form in ("json", "csv"):
        raise click.BadParameter(f"is for text and Markdown; {form} has all calls", param_hint="--calls")


def _print_report(report: Report, form: ReportFormat, calls: int | None) -> None:
    """Print a report; `calls` None: as many as the format has by default."""
    from rtc_appservice.view import tabular
    from rtc_appservice.view.report import render_json, render_text

    some = {} if calls is None else {"calls": calls}
    if form == "json":
        click.echo(render_json(report))
    elif form == "csv":
        click.echo(tabular.report_csv(report), nl=False)
    elif form == "markdown":
        click.echo(tabular.report_markdown(report, **some), nl=False)
    else:
        click.echo(render_text(report, **some))


def _with_progress(items: Iterator[RecordedTransaction]) -> Iterator[RecordedTransaction]:
    """Pass items on; say on stderr how many there were, each second after the first."""
    said_at = monotonic()
    for count, item in enumerate(items, start=1):
        if monotonic() - said_at > _PROGRESS_SECONDS:
            said_at = monotonic()
            click.echo(f"{count} transactions read", err=True)
        yield item
