"""The command `doctor`: prints what is found of an installation, step by step."""

import asyncio
import logging
import sys
from functools import partial
from pathlib import Path

import click

from rtc_appservice.cli.options import Format, config_option, example, format_option
from rtc_appservice.core.installation import Check, Outcome

_tell = partial(click.echo, err=True)
_COLOURS = {Outcome.OK: "green", Outcome.FAILED: "red", Outcome.SKIPPED: "yellow"}


@click.command()
@config_option
@format_option
@example("rtc-appservice doctor --config /data/config.yaml")
def doctor(config_path: Path, form: Format) -> None:
    """
    Check an installation end to end, and say what to do about each fault; exit 1 if there is any.

    It can be run whether the service runs or not. If not, it listens on the service's port for a moment, and leaves to
    the service whatever the homeserver has for it. It makes a device of a user of the service's own, and deletes it.
    """
    import msgspec

    from rtc_appservice.doctor import examine

    checks: list[Check] = []

    def report(check: Check) -> None:
        checks.append(check)
        if form == "text":
            click.echo(_line(check))

    # What is wrong is said by the step; libraries would say it once more, with less to go by.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        is_well = asyncio.run(examine(config_path, report, _tell))
    finally:
        logging.disable(disabled)
    if form == "json":
        click.echo(msgspec.json.encode({"ok": is_well, "checks": checks}))
    sys.exit(0 if is_well else 1)


def _line(check: Check) -> str:
    outcome = click.style(f"{check.outcome:<7}", fg=_COLOURS[check.outcome])
    advice = f"\n{'':9}{'':16}-> {check.advice}" if check.advice else ""
    return f"{outcome}  {check.step:<14}  {check.text}{advice}"
