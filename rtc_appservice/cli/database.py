"""Commands about the database: its schema, and what is projected in it."""

import asyncio
import sys
from pathlib import Path

import click

from rtc_appservice.cli.options import (
    Commands,
    Format,
    Progress,
    checked,
    config_option,
    example,
    format_option,
    telling,
)
from rtc_appservice.config_file import load_config


@click.group(cls=Commands)
def db() -> None:
    """The database schema: `upgrade` brings it to the newest migration, `current` says where it is, `sql` prints it."""


@db.command("upgrade")
@config_option
@example("rtc-appservice db upgrade")
def db_upgrade(config_path: Path) -> None:
    """Bring the database to the newest migration; `run` does the same at start."""
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate

    with telling("migrating the database"), database(load_config(config_path).database, make=True) as dsn:
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

    with telling("asking the database"), database(load_config(config_path).database) as dsn:
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


@click.command("replay")
@config_option
@example("rtc-appservice replay")
def replay_all(config_path: Path) -> None:
    """Rebuild calls and findings from the observations, as far back as those are kept; what was sent stays sent."""
    from rtc_appservice import service

    config, registered = checked(config_path)
    progress = Progress()
    with telling("projecting all rooms anew"), service.database(config.database) as dsn:
        replayed = asyncio.run(
            service.replay_all(config, registered, dsn, lambda done, rooms: progress.tell(f"{done} of {rooms} rooms"))
        )
    click.echo(f"{replayed.projected} rooms projected anew")
    if replayed.failed:
        click.echo(f"{replayed.failed} rooms could not be projected and stay as they were; see the warnings", err=True)
        sys.exit(1)
