"""
The service of `run`: every stage, wired up, started and stopped in order.

Stages know nothing of each other; here each is given its callables and its database.
"""

import asyncio
import gc
import logging
import signal
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime

from aiohttp import web

from rtc_appservice import __version__
from rtc_appservice.config import Config, Database
from rtc_appservice.core.wire import TransactionReader
from rtc_appservice.core.words import ServerName
from rtc_appservice.errors import ConfigError, RtcAppserviceError, ServiceFailed
from rtc_appservice.export.events import EventMaker, Terms, event_maker
from rtc_appservice.export.posthog import run_posthog
from rtc_appservice.export.prometheus import Metrics
from rtc_appservice.export.pseudonym import Pseudonyms
from rtc_appservice.intake.device_facts import Ask, asking, run_device_facts
from rtc_appservice.intake.notifications import Post, posting, run_notifications
from rtc_appservice.intake.server import Credentials, IntakeServer
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.ports import listening, require_port
from rtc_appservice.projector import Projector, Replayed, no_events, replay, run_projector
from rtc_appservice.registration import Registration
from rtc_appservice.store import migrate
from rtc_appservice.store.embedded import EmbeddedPostgres, is_made, watch_embedded
from rtc_appservice.store.pool import Pool, cut_off, open_pool, store_errors
from rtc_appservice.store.streams import open_stream
from rtc_appservice.view.access import Access, Names
from rtc_appservice.view.health import health_app
from rtc_appservice.view.pages import Pages

_log = logging.getLogger(__name__)

#: How long, once told to stop, the service waits for its database; what was not committed by then is done again.
STOP_SECONDS = 10.0
#: What configures the addresses that are listened on.
_ADMIN_KEYS = "metrics.hostname and metrics.listen_port"
_HOMESERVER_KEYS = "appservice.hostname and appservice.port"


@contextmanager
def database(config: Database, *, make: bool = False) -> Iterator[str]:
    """
    Give the DSN of the configured database, or of an embedded one that runs for as long as it is in use.

    Raises:
        ConfigError: if there is no embedded one yet, and none is to be made.
    """
    if config.dsn is not None:
        yield config.dsn
        return
    if not make and not is_made(config.embedded_path):
        raise ConfigError(
            "There is no database yet: database.url is not set, and database.embedded_path names "
            f"{config.embedded_path}, which holds no PostgreSQL. `rtc-appservice run` makes one there; if yours is "
            "elsewhere, set database.url or RTC_APPSERVICE_DATABASE__URL."
        )
    server = EmbeddedPostgres(config.embedded_path)
    try:
        dsn = server.start()
        _log.info("no database.url is given: PostgreSQL runs in a folder", extra={"folder": str(config.embedded_path)})
        yield dsn
    finally:
        server.stop()


async def run(config: Config, registration: Registration, dsn: str) -> None:
    """
    Serve until SIGTERM or Ctrl-C, then end what is under way and return.

    Raises:
        RtcAppserviceError: if it cannot start, or if a part of it ended by an error.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await migrate.upgrade(dsn)
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(await open_pool(dsn, config.database.pool_size))
        await stack.enter_async_context(cut_off(pool, stop, STOP_SECONDS))
        metrics = Metrics(pool, [config.homeserver.domain], __version__)
        # A start that is given up would leave the gap of a restart, which nobody ends.
        await _require_ports(config)
        intake = await _open_intake(config, pool)
        events = event_maker(_terms(config), metrics.observe_misfit, metrics.observe_sampled_out)
        projector = await _projector(config, registration, pool, events)
        projector = replace(projector, events=metrics.counting(projector.events, config.deployment_secret))
        if config.metrics.enabled:
            await stack.enter_async_context(_admin_listener(config, dsn, pool, metrics))
        live, ask, post = await stack.enter_async_context(
            _homeserver_listener(config, registration, pool, intake, metrics)
        )
        # What was imported and made so far stays; the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        _log.info("serving", extra=_description(config, registration))
        await run_until(
            stop,
            intake.run_heartbeat(stop),
            _nothing(stop) if config.database.dsn is not None else watch_embedded(config.database.embedded_path, stop),
            live(stop),
            run_projector(pool, projector, stop),
            run_device_facts(pool, projector.homeserver_id, ask, stop),
            _nothing(stop)
            if post is None
            else run_notifications(
                pool,
                projector.homeserver_id,
                post,
                stop,
                weekly_target=config.detection.readiness_target if config.notifications.weekly else None,
            ),
            run_posthog(
                pool,
                stop,
                api_key=config.posthog.key,
                host=config.posthog.host,
                terms=_terms(config),
                observe=metrics.observe_export,
            ),
        )
        _log.info("stopping")


async def replay_all(
    config: Config, registration: Registration, dsn: str, tell: Callable[[int, int], None]
) -> Replayed:
    """Project every room of the homeserver anew, as `replay` does; give how many were, and how many could not be."""
    await migrate.require_head(dsn)
    # One connection follows the marks while the other projects.
    async with await open_pool(dsn, 2) as pool:
        return await replay(pool, await _projector(config, registration, pool), datetime.now(UTC), tell)


async def _require_ports(config: Config) -> None:
    """Raise PortUnavailable where a port that is about to be listened on cannot be."""
    if config.metrics.enabled:
        await require_port(config.metrics.hostname, config.metrics.listen_port, keys=_ADMIN_KEYS)
    await require_port(config.appservice.hostname, config.appservice.port, keys=_HOMESERVER_KEYS)


async def _open_intake(config: Config, pool: Pool) -> TransactionIntake:
    name = ServerName(config.homeserver.domain)
    reader = TransactionReader(name, config.deployment_secret, comparison_tags=config.detection.comparison_tags)
    intake = TransactionIntake(pool, name, reader)
    await intake.open()
    return intake


async def _projector(
    config: Config,
    registration: Registration,
    pool: Pool,
    events: EventMaker | None = None,
) -> Projector:
    name = ServerName(config.homeserver.domain)
    with store_errors():
        async with pool.acquire() as connection:
            stream = await open_stream(connection, name)
    return Projector(
        homeserver=name,
        homeserver_id=stream.homeserver_id,
        envelopes=registration.envelopes,
        settings=config.detection.settings(),
        events=(events or event_maker(_terms(config))) if config.posthog.key else no_events,
    )


def _terms(config: Config) -> Terms:
    return Terms(
        secret=config.deployment_secret,
        app_version=__version__,
        sample_rate=config.posthog.sample_rate,
        pseudonym_rotation_days=config.posthog.pseudonym_rotation_days,
    )


@asynccontextmanager
async def _admin_listener(config: Config, dsn: str, pool: Pool, metrics: Metrics) -> AsyncIterator[None]:
    async def ready() -> None:
        await migrate.require_head(dsn)

    host, port = config.metrics.hostname, config.metrics.listen_port
    called = Pseudonyms(config.deployment_secret)
    access = Access(
        host=host,
        token=config.metrics.page_token,
        pseudonyms=Names(room=called.room, user=called.user, device=called.device),
    )
    app = health_app(metrics.page, ready)
    Pages(pool, config.detection.settings(), ready, access).add_to(app)
    # No access log: probes and scrapes would be most of what is logged.
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        with listening(host, port, keys=_ADMIN_KEYS):
            await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


@asynccontextmanager
async def _homeserver_listener(
    config: Config, registration: Registration, pool: Pool, intake: TransactionIntake, metrics: Metrics
) -> AsyncIterator[tuple[Callable[[asyncio.Event], Awaitable[None]], Ask, Post | None]]:
    """
    Listen to the homeserver.

    Gives what lets the service's own device live until an event, what asks of any device, and what posts notices.
    """
    server = IntakeServer(
        Credentials(
            appservice_id=registration.id,
            as_token=registration.as_token,
            hs_token=registration.hs_token,
            sender_localpart=registration.sender_localpart,
        ),
        address=config.homeserver.address,
        homeserver=ServerName(config.homeserver.domain),
        take=intake.take,
        max_body_bytes=config.appservice.max_body_bytes,
        observe=metrics.observe_transaction,
    )
    host, port = config.appservice.hostname, config.appservice.port
    try:
        live = await _own_device(config, registration, pool, intake, server)
        with listening(host, port, keys=_HOMESERVER_KEYS):
            await server.start(host, port)
        as_sender = (server.server, server.as_token, server.open_client(), server.bot_mxid)
        room = config.notifications.room_id
        yield live, asking(*as_sender), None if room is None else posting(*as_sender, room)
    finally:
        await server.stop()


async def _own_device(
    config: Config, registration: Registration, pool: Pool, intake: TransactionIntake, server: IntakeServer
) -> Callable[[asyncio.Event], Awaitable[None]]:
    """Load the service's own device, or make it; give what lets it live. It reads from the first transaction on."""
    if not config.auditor.enabled:
        return _nothing
    from rtc_appservice.intake.auditor import Auditor, auditor_terms

    name = ServerName(config.homeserver.domain)
    terms = auditor_terms(
        address=config.homeserver.address,
        as_token=registration.as_token,
        sender_localpart=registration.sender_localpart,
        homeserver=name,
        secret=config.deployment_secret,
        invited_by=tuple(config.auditor.invited_by),
        rooms=tuple(config.auditor.rooms),
        notice=config.auditor.notice,
        witness_notice=config.auditor.witness_notice,
    )
    server.own_users.add(terms.user_id)
    auditor = Auditor(pool, name, intake, terms)
    await auditor.open(server.open_client())
    return auditor.run


async def _nothing(_stop: asyncio.Event) -> None:
    """Live as no device does."""


async def run_until(stop: asyncio.Event, *parts: Awaitable[None]) -> None:
    """Run the parts until `stop` is set and each has ended; one that fails ends all, and is raised."""

    async def guarded(part: Awaitable[None]) -> None:
        try:
            await part
        except RtcAppserviceError:
            stop.set()
            raise
        except Exception as error:  # noqa: BLE001  # its text stays out of the log: a driver's may quote what it wrote
            stop.set()
            where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)]
            _log.critical("a part of the service failed", extra={"error": type(error).__name__, "trace": where})
            raise ServiceFailed from None

    for result in await asyncio.gather(*(guarded(part) for part in parts), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _description(config: Config, registration: Registration) -> dict[str, object]:
    """Give the log fields that say how the service was started."""
    return {
        "version": __version__,
        "homeserver": config.homeserver.domain,
        "listening": f"{config.appservice.hostname}:{config.appservice.port}",
        "admin": f"{config.metrics.hostname}:{config.metrics.listen_port}" if config.metrics.enabled else "off",
        "posthog": config.posthog.host if config.posthog.key else "off",
        "envelopes": registration.envelopes,
    }
