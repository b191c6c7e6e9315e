"""The commands about the service's own device: the rooms it is in, the phrase of its identity, a new one."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import click

from rtc_appservice.cli.options import Commands, Format, config_option, example, format_option
from rtc_appservice.config import Config
from rtc_appservice.config_file import load_config
from rtc_appservice.core.words import RoomId, ServerName
from rtc_appservice.errors import ConfigError, InputError
from rtc_appservice.store.pool import Connection

_T = TypeVar("_T")

_room_argument = click.argument("room_id", metavar="ROOM")


@click.group(cls=Commands)
def room() -> None:
    """The rooms that the service's own device reads; a running service follows within seconds."""


@room.command("add")
@_room_argument
@config_option
@example("rtc-appservice room add '!abc:example.org'")
def add_room(room_id: str, config_path: Path) -> None:
    """Have the device enter ROOM, given by its id; the room must be open to it, or have invited it."""
    _want(room_id, config_path, wanted=True)
    click.echo(f"the device will enter {room_id}")


@room.command("remove")
@_room_argument
@config_option
@example("rtc-appservice room remove '!abc:example.org'")
def remove_room(room_id: str, config_path: Path) -> None:
    """Have the device leave ROOM: nothing sealed in it is read from then on."""
    _want(room_id, config_path, wanted=False)
    click.echo(f"the device will leave {room_id}")


@room.command("list")
@config_option
@format_option
@example("rtc-appservice room list --format json")
def list_rooms(config_path: Path, form: Format) -> None:
    """List the rooms the device is in or has been asked into, and how many events wait unread, by reason."""
    import msgspec

    from rtc_appservice.store.audited_rooms import audited_rooms
    from rtc_appservice.store.crypto import count_unread

    config = load_config(config_path)
    rooms = _with_store(config, audited_rooms)
    unread = _with_store(config, count_unread)
    if form == "json":
        click.echo(msgspec.json.encode({"rooms": rooms, "unread_events": unread}))
        return
    if not rooms:
        click.echo(
            "the device is in no room; have somebody of auditor.invited_by invite it, or use `room add`", err=True
        )
    for found in rooms:
        state = "leaving" if not found.wanted else "entering" if found.joined_at is None else "in"
        click.echo(f"{found.room_id}  {state}{', takes part in calls' if found.witness else ''}")
    for reason, events in unread.items():
        click.echo(f"{events} events unread: {reason}")


@room.command("witness")
@_room_argument
@click.argument("state", type=click.Choice(["on", "off"]))
@config_option
@example("rtc-appservice room witness '!abc:example.org' on")
def witness(room_id: str, state: str, config_path: Path) -> None:
    """
    Have the device take part in the calls of ROOM, or no longer.

    It is then sent everybody's media keys, which shows directly whether they arrive; it keeps none. Moderators of the
    room can do the same by the room state `rtc_appservice.witness` with `{"enabled": true}`.
    """
    from rtc_appservice.store.audited_rooms import want_witness

    def write(conn: Connection, homeserver_id: int) -> Awaitable[bool]:
        return want_witness(conn, homeserver_id, RoomId(room_id), witness=state == "on")

    if not _with_store(load_config(config_path), write):
        raise InputError(f"the device is not in {room_id}; `rtc-appservice room add` has it enter")
    click.echo(f"the device takes part in the calls of {room_id}: {state}")


@click.command("recovery-phrase")
@config_option
@example("rtc-appservice recovery-phrase")
def show_recovery_phrase(config_path: Path) -> None:
    """
    Print the phrase that opens the cross-signing keys of the device's user, a secret.

    It follows from the deployment secret. With it a client that is logged in as that user can verify others, so that
    those who share keys with verified users only share with the device too.
    """
    try:
        from rtc_appservice.intake.device_setup import recovery_phrase
    except ImportError as error:
        raise ConfigError(f"needs `pip install 'rtc-appservice[encryption]'` ({error.name} is missing)") from error
    click.echo(recovery_phrase(load_config(config_path).deployment_secret))


@click.command("new-device")
@config_option
@click.confirmation_option(prompt="Forget the keys of the service's device? What only they can open stays unread.")
@example("rtc-appservice new-device --yes")
def renew_device(config_path: Path) -> None:
    """
    Forget the keys of the service's own device: with its next start the service makes another one.

    For a deployment secret that was changed or has become known. Stop the service first; one that runs ends by itself
    within a minute. The rooms stay; what was sealed for the old device alone is not read any more. Who administers the
    homeserver can delete the old device.
    """
    from rtc_appservice.store.crypto import forget_device

    _with_store(load_config(config_path), forget_device)
    click.echo("the service makes a new device when it starts; one that runs ends within a minute: start it again then")


def _want(room_id: str, config_path: Path, *, wanted: bool) -> None:
    from rtc_appservice.store.audited_rooms import want_room

    if not room_id.startswith("!"):
        raise InputError(f"{room_id} is no room id; one begins with !")

    def write(conn: Connection, homeserver_id: int) -> Awaitable[None]:
        return want_room(conn, homeserver_id, RoomId(room_id), wanted=wanted)

    _with_store(load_config(config_path), write)


def _with_store(config: Config, work: Callable[[Connection, int], Awaitable[_T]]) -> _T:
    """Do something with a connection and the homeserver's number."""
    from rtc_appservice.service import database
    from rtc_appservice.store import migrate
    from rtc_appservice.store.pool import open_pool, store_errors
    from rtc_appservice.store.streams import open_stream

    async def run(dsn: str) -> _T:
        await migrate.require_head(dsn)
        async with await open_pool(dsn, 1) as pool:
            with store_errors():
                async with pool.acquire() as conn:
                    stream = await open_stream(conn, ServerName(config.homeserver.domain))
                    return await work(conn, stream.homeserver_id)

    with database(config.database) as dsn:
        return asyncio.run(run(dsn))
