"""What the commands of every group share: how they fail, where the configuration is, how they print."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from rtc_appservice.config_file import PATH_VARIABLE
from rtc_appservice.errors import RtcAppserviceError

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
