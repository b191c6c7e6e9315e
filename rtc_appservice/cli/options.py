"""What the commands of every group share: how they fail, where the configuration is, how they print."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from time import monotonic
from typing import Any, Literal

import click

from rtc_appservice import registration
from rtc_appservice.config import Config
from rtc_appservice.config_file import PATH_VARIABLE, load_config
from rtc_appservice.errors import RtcAppserviceError
from rtc_appservice.registration import Registration

#: Whatever takes longer says so on stderr.
PROGRESS_SECONDS = 1.0

Format = Literal["text", "json"]


class Commands(click.Group):
    """Commands whose own errors are one message on stderr and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was named."""
        try:
            return super().invoke(ctx)
        except RtcAppserviceError as error:
            raise click.ClickException(str(error)) from error


config_option = click.option(
    "-c",
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default="config.yaml",
    envvar=PATH_VARIABLE,
    show_default=True,
    show_envvar=True,
    help="The configuration.",
)

format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print."
)


def example(line: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an example to the help of a command."""

    def add(command: Callable[..., None]) -> Callable[..., None]:
        command.__doc__ = f"{command.__doc__}\n\n    \b\n    Example:\n      {line}\n"
        return command

    return add


def checked(config_path: Path) -> tuple[Config, Registration]:
    """Load the configuration and its registration; ConfigError if one of them is not fit to run with."""
    config = load_config(config_path)
    return config, registration.load_usable(config.appservice.registration)


class Progress:
    """Says on stderr how far something has come: once a second, after the first."""

    def __init__(self) -> None:
        """Begin now."""
        self._said_at = monotonic()

    def tell(self, text: str) -> None:
        """Say it, if it is time."""
        if monotonic() - self._said_at > PROGRESS_SECONDS:
            self._said_at = monotonic()
            click.echo(text, err=True)


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Say on stderr what is being done, if it takes longer than `PROGRESS_SECONDS`."""
    timer = Timer(PROGRESS_SECONDS, click.echo, (f"{what} …",), {"err": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
