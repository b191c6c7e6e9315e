"""The commands about one user: what is held, and forgetting it."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rtc_appservice.cli.options import Format, config_option, example, format_option, telling
from rtc_appservice.config import Config
from rtc_appservice.config_file import load_config
from rtc_appservice.core.person import check_user_id
from rtc_appservice.core.wording import moment, plain
from rtc_appservice.core.words import ServerName, UserId
from rtc_appservice.errors import InputError
from rtc_appservice.store.pool import Connection

if TYPE_CHECKING:  # takes a while to import
    from rtc_appservice.person import Held, Terms
    from rtc_appservice.projector import Projector

_T = TypeVar("_T")

_user_argument = click.argument("user", metavar="USER")
_homeserver_option = click.option("--homeserver", help="At this one only.  [default: all in the database]")

#: Columns that tell when a row is from, the first there is.
_TIMES = ("event_at", "started_at", "at", "joined_at", "received_at", "fetched_at")


@click.command("about")
@_user_argument
@config_option
@_homeserver_option
@format_option
@example("rtc-appservice about @ann:example.org --format json")
def about_user(user: str, config_path: Path, homeserver: str | None, form: Format) -> None:
    """
    Tell what is held about USER in every table: a summary, or all rows as JSON.

    Of Olm and Megolm sessions only the number is told. Rows name others too: look through them before you hand them on.
    """
    import msgspec

    user_id, config = check_user_id(user), load_config(config_path)
    found = _with_store(config, _finding(user_id, homeserver, config))
    if form == "json":
        click.echo(msgspec.json.encode({"user_id": user_id, "held": [_as_json(user_id, held) for held in found]}))
    elif not found:
        click.echo(f"nothing is held about {plain(user_id)}")
    else:
        click.echo("\n\n".join(_as_text(user_id, held) for held in found))


@click.command("forget")
@_user_argument
@config_option
@_homeserver_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@example("rtc-appservice forget @ann:example.org")
def forget_user(user: str, config_path: Path, homeserver: str | None, yes: bool) -> None:
    """
    Replace USER, and the user's devices, by random tombstones in everything that is held.

    Calls, findings and totals stay as they are. A running service goes on; what the user does from now on is recorded
    anew. What PostHog already has is named, to be deleted there; see SECURITY.md for what else is out of reach.
    """
    from rtc_appservice import logs
    from rtc_appservice.person import forget

    user_id, config = check_user_id(user), load_config(config_path)
    projector = _projectors(config)
    found = _with_store(config, _finding(user_id, homeserver, config))
    if not found:
        click.echo(f"nothing is held about {plain(user_id)}")
        return
    click.echo("\n\n".join(_as_text(user_id, held) for held in found))
    going_on = sum(held.calls_going_on for held in found)
    if going_on:
        click.echo(f"\n{going_on} of these calls still go on: better wait until the user has left them.")
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("Nothing was changed. This cannot be undone: say --yes to go on.")
        click.confirm("\nReplace all of this? It cannot be undone.", abort=True)
    names = [held.homeserver for held in found]

    def work(conn: Connection) -> Awaitable[int]:
        return forget(conn, user_id, names, projector, _terms(config))

    logs.configure(config.logging.level, config.logging.format)
    changed = _with_store(config, work)
    click.echo(f"\na user was forgotten: {changed} records hold tombstones or are gone")


def _as_text(user_id: UserId, held: "Held") -> str:
    """Give a summary: how much of what, from when, and under which pseudonyms PostHog may know the user."""
    lines = [f"held about {plain(user_id)} at {held.homeserver}:"]
    if held.devices:
        lines.append(f"  devices  {', '.join(plain(device) for device in sorted(held.devices))}")
    for table, rows in held.tables.items():
        if rows:
            times = sorted(datetime.fromisoformat(at) for row in rows if (at := _time(row)) is not None)
            between = f"  {moment(times[0])} to {moment(times[-1])}" if times else ""
            lines.append(f"  {table:<18} {len(rows):>7}{between}")
    for name, count in (
        ("olm sessions", held.olm_sessions),
        ("megolm sessions", held.megolm_sessions),
        ("unread events", len(held.unread_events)),
        ("outbox", held.outbox),
    ):
        if count:
            lines.append(f"  {name:<18} {count:>7}")
    exported = held.exported
    if exported.distinct_ids:
        lines += [
            "  If PostHog was on, its events about the user have one of these pseudonyms in a property:",
            *(f"    user    {each}" for each in exported.users),
            *(f"    device  {each}" for each in exported.devices),
            "  and one of these distinct_ids, which are the user's calls, others' events among them:",
            *(f"    {each}" for each in exported.distinct_ids),
        ]
    return "\n".join(lines)


def _time(row: Mapping[str, Any]) -> str | None:
    return next((str(row[name]) for name in _TIMES if row.get(name) is not None), None)


def _as_json(user_id: UserId, held: "Held") -> dict[str, Any]:
    tables = {table: [_row(user_id, table, row, held.room_ids) for row in rows] for table, rows in held.tables.items()}
    return {
        "homeserver": held.homeserver,
        "devices": sorted(held.devices),
        "tables": tables,
        "olm_sessions": held.olm_sessions,
        "megolm_sessions": held.megolm_sessions,
        "unread_events": list(held.unread_events),
        "outbox_events": held.outbox,
        "posthog": {
            "users": held.exported.users,
            "devices": held.exported.devices,
            "distinct_ids": held.exported.distinct_ids,
        },
    }


def _row(user_id: UserId, table: str, row: Mapping[str, Any], room_ids: Mapping[int, str]) -> dict[str, Any]:
    """Give a row with its room by name; of a call's report only what is of the user, the rest is about others."""
    shown = {name: value for name, value in row.items() if name not in ("homeserver_id", "room_key", "report")}
    if "room_key" in row:
        shown["room_id"] = room_ids.get(row["room_key"])
    if table == "call_session":
        for part in ("participants", "fallbacks"):
            shown[part] = [each for each in row["report"][part] if each["user_id"] == user_id]
    return shown


# --- the database ----------------------------------------------------------------------------------


def _terms(config: Config) -> "Terms":
    from rtc_appservice.person import Terms

    return Terms(secret=config.deployment_secret, pseudonym_rotation_days=config.posthog.pseudonym_rotation_days)


def _finding(
    user_id: UserId, homeserver: str | None, config: Config
) -> Callable[[Connection], Awaitable[Sequence["Held"]]]:
    from rtc_appservice.person import find

    return lambda conn: find(conn, user_id, homeserver, _terms(config))


def _projectors(config: Config) -> Callable[[ServerName, int], "Projector"]:
    """Give how the rooms of a homeserver are projected: as the service does."""
    from rtc_appservice import registration
    from rtc_appservice.projector import Projector

    envelopes, settings = registration.load(config.appservice.registration).envelopes, config.detection.settings()
    return lambda name, number: Projector(homeserver=name, homeserver_id=number, envelopes=envelopes, settings=settings)


def _with_store(config: Config, work: Callable[[Connection], Awaitable[_T]]) -> _T:
    """Do something with a connection to a database at the newest migration."""
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate
    from rtc_appservice.store.pool import open_pool, store_errors

    async def run(dsn: str) -> _T:
        await migrate.require_head(dsn)
        async with await open_pool(dsn, 1) as pool:
            with store_errors():
                async with pool.acquire() as conn:
                    return await work(conn)

    with telling("looking through the database"), database(config.database) as dsn:
        return asyncio.run(run(dsn))
