"""Commands that print what was found: `audit`, `report` and `call`."""

import asyncio
import secrets
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import click

from rtc_appservice.cli.options import Progress, config_option, example, telling
from rtc_appservice.config_file import load_config
from rtc_appservice.core.audit import RecordedTransaction
from rtc_appservice.core.model import Report
from rtc_appservice.errors import ConfigError

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


@click.command()
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


@click.command("report")
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
    config = load_config(config_path)
    now = datetime.now(UTC)
    start = now - timedelta(days=days) if since is None else since.replace(tzinfo=UTC)

    async def read(dsn: str) -> Report:
        await migrate.require_head(dsn)
        async with await open_pool(dsn, 1) as pool:
            target = config.detection.readiness_target
            return await read_report(pool, since=start, homeserver=homeserver, now=now, target=target)

    with telling("reading calls from the database"), database(config.database) as dsn:
        report = asyncio.run(read(dsn))
    _print_report(report, form, calls)
    if require_ready and report.readiness.verdict != "ready":
        sys.exit(1)


@click.command("call")
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

    with telling("reading the call from the database"), database(config.database) as dsn:
        told = asyncio.run(read(dsn))
    renderers = {"json": call.render_call_json, "csv": tabular.call_csv, "markdown": tabular.call_markdown}
    click.echo(renderers.get(form, call.render_call_text)(told), nl=form == "text")


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
    progress = Progress()
    for count, item in enumerate(items, start=1):
        progress.tell(f"{count} transactions read")
        yield item
