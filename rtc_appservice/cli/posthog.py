"""The command line of PostHog: its dashboards, and the events it refused."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rtc_appservice.cli.options import Commands, Format, config_option, example, format_option
from rtc_appservice.config_file import load_config
from rtc_appservice.errors import ConfigError

if TYPE_CHECKING:
    from rtc_appservice.export.dashboards.sync import Change

#: PostHog's own name for such a key. The service has no use for it, so it is no key of the configuration.
KEY_VARIABLE = "POSTHOG_PERSONAL_API_KEY"

_SIGNS = {"create": "+", "update": "~", "delete": "-"}
_LONGEST_VALUE = 60

_tell = partial(click.echo, err=True)


@click.group(cls=Commands)
def posthog() -> None:
    """PostHog dashboards: `check` looks at the files, `diff` compares, `push` writes; `requeue` sends events again."""


def _url(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise click.BadParameter("must be a URL that starts with http:// or https://")
    return value


def _project_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add what says which project, and the key to it, which never stands on the command line."""
    for option in (
        click.option(
            "--key-file",
            type=click.Path(path_type=Path, dir_okay=False),
            help=f"A file that holds the personal API key.  [default: the key in {KEY_VARIABLE}]",
        ),
        click.option(
            "--project",
            type=click.IntRange(min=1),
            envvar="POSTHOG_PROJECT_ID",
            required=True,
            show_envvar=True,
            help="Number of the project.",
        ),
        click.option(
            "--host",
            envvar="POSTHOG_HOST",
            required=True,
            show_envvar=True,
            callback=_url,
            help="The app host, as https://eu.posthog.com; not the one events are sent to.",
        ),
    ):
        command = option(command)
    return command


@posthog.command("check")
@example("rtc-appservice posthog check")
def check_dashboards() -> None:
    """Say whether the dashboards name only what is sent and what PostHog knows; asks nobody."""
    from rtc_appservice.export.dashboards.check import check, load

    dashboards = load()
    faults = check(dashboards)
    for fault in faults:
        _tell(fault)
    tiles = sum(len(dashboard.tiles) for dashboard in dashboards)
    if faults:
        sys.exit(1)
    click.echo(f"{len(dashboards)} dashboards with {tiles} tiles can be pushed")


@posthog.command("diff")
@_project_options
@format_option
@example("rtc-appservice posthog diff --host https://eu.posthog.com --project 1234 --key-file key")
def diff_dashboards(host: str, project: int, key_file: Path | None, form: Format) -> None:
    """Print what a push would change; exit 1 if anything."""
    changes = _synchronise(host, project, key_file, write=False)
    _print_changes(changes, form)
    sys.exit(1 if changes else 0)


@posthog.command("push")
@_project_options
@format_option
@example("rtc-appservice posthog push --host https://eu.posthog.com --project 1234 --key-file key")
def push_dashboards(host: str, project: int, key_file: Path | None, form: Format) -> None:
    """
    Create or update the dashboards in a PostHog project.

    What is ours is known by the last line of its description; nothing else is touched. The personal API key needs the
    scopes dashboard:read, dashboard:write, insight:read and insight:write.
    """
    _print_changes(_synchronise(host, project, key_file, write=True), form)


@posthog.command("requeue")
@config_option
@example("rtc-appservice posthog requeue")
def requeue_events(config_path: Path) -> None:
    """Let the events that PostHog refused for good wait to be sent again, unchanged; `run` sends them."""
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate, outbox
    from rtc_appservice.store.pool import open_pool, store_errors

    async def requeue(dsn: str) -> int:
        await migrate.require_head(dsn)
        with store_errors():
            async with await open_pool(dsn, 1) as pool, pool.acquire() as conn:
                return await outbox.requeue(conn, datetime.now(UTC))

    with database(load_config(config_path).database) as dsn:
        click.echo(f"{asyncio.run(requeue(dsn))} events wait to be sent again")


def _synchronise(host: str, project: int, key_file: Path | None, *, write: bool) -> "list[Change]":
    """Check the dashboards, then compare them with the project, and make it the same if `write`."""
    from rtc_appservice.export.dashboards.check import check, load
    from rtc_appservice.export.dashboards.sync import synchronise
    from rtc_appservice.export.posthog_api import open_api

    key = _key(key_file)
    dashboards = load()
    if faults := check(dashboards):
        raise ConfigError("\n".join(["The dashboards cannot be pushed:", *(f"  {fault}" for fault in faults)]))

    async def run() -> "list[Change]":
        async with open_api(host, str(project), key, tell=_tell) as api:
            return await synchronise(api, dashboards, write=write, tell=_tell)

    return asyncio.run(run())


def _key(key_file: Path | None) -> str:
    """Give the personal API key from its file, else from the environment."""
    if key_file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            raise click.UsageError(f"A personal API key is needed: give --key-file, or set {KEY_VARIABLE}.")
        return key
    try:
        key = key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not text"
        raise ConfigError(f"{key_file} cannot be read: {reason}") from error
    if not key:
        raise ConfigError(f"{key_file} is empty")
    return key


def _print_changes(changes: "Sequence[Change]", form: Format) -> None:
    if form == "json":
        import msgspec

        click.echo(msgspec.json.encode(changes))
    else:
        click.echo("\n".join(_lines(changes)) or "no differences")


def _lines(changes: "Sequence[Change]") -> Iterator[str]:
    for change in changes:
        number = "" if change.number is None else f" ({change.number})"
        yield f"{_SIGNS[change.action]} {change.kind} {change.slug}{number}: {change.name}"
        for each in change.differences:
            yield f"    {each.path}: {_short(each.stored)} -> {_short(each.wanted)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
