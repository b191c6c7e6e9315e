"""The command `rtc-appservice`: what sets up and runs the service stands here, the rest beside it."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Literal

import click

from rtc_appservice import __version__, registration
from rtc_appservice.cli.database import db, replay_all
from rtc_appservice.cli.doctor import doctor
from rtc_appservice.cli.options import Commands, checked, config_option, example
from rtc_appservice.cli.person import about_user, forget_user
from rtc_appservice.cli.posthog import posthog
from rtc_appservice.cli.reports import audit, print_call, print_report
from rtc_appservice.cli.room import renew_device, room, show_recovery_phrase
from rtc_appservice.config_file import load_config, write_config
from rtc_appservice.errors import ConfigError
from rtc_appservice.files import write_secret
from rtc_appservice.registration import Scope

_replace_option = click.option("--replace", is_flag=True, help="Replace files that are there with other content.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="rtc-appservice")
def main() -> None:
    """Audits how MatrixRTC media keys travel: as room events or by to-device messages."""


for command in (
    *(audit, print_report, print_call, about_user, forget_user),
    *(db, replay_all, doctor, posthog, room, show_recovery_phrase, renew_device),
):
    main.add_command(command)


# --- the service ------------------------------------------------------------------------------


@main.command()
@config_option
@example("rtc-appservice run --config /data/config.yaml")
def run(config_path: Path) -> None:
    """Run the service until SIGTERM or Ctrl-C."""
    from rtc_appservice import logs, service

    config, registered = checked(config_path)
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
    config, registered = checked(config_path)
    config.auditor.require()
    path = config.appservice.registration
    for doubt in config.auditor.doubts():
        click.echo(f"Warning: {config_path}: {doubt}", err=True)
    for doubt in registered.doubts(domain=config.homeserver.domain, port=config.appservice.port):
        click.echo(f"Warning: {path}: {doubt}", err=True)
    click.echo(f"{config_path} and {path} can be used; {registered.shown}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@_replace_option
@example("rtc-appservice prometheus /etc/prometheus")
def prometheus(folder: Path, replace: bool) -> None:
    """Write rules, alerts and a sample configuration for Prometheus to FOLDER, and name what was written."""
    _write_monitoring("prometheus", folder, replace=replace)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@_replace_option
@example("rtc-appservice grafana /var/lib/grafana/dashboards")
def grafana(folder: Path, replace: bool) -> None:
    """Write the boards for Grafana to FOLDER, and name what was written."""
    _write_monitoring("grafana", folder, replace=replace)


def _write_monitoring(kind: Literal["prometheus", "grafana"], folder: Path, *, replace: bool) -> None:
    """Write the files of one kind, and name them on stdout; say on stderr if there was nothing to write."""
    from rtc_appservice.view.monitoring import write_monitoring

    written = write_monitoring(kind, folder, replace=replace)
    for path in written:
        click.echo(path)
    if not written:
        click.echo(f"Nothing to write: {folder} has every file already, with the same content.", err=True)
