"""
The steps of `doctor`, in order: each asks one thing of the installation and gives one `Check`.

A step that needs one that failed is skipped. Nothing is written to the database, and the homeserver is left as it was,
but for the user `…-doctor`, since Matrix deletes no users.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rtc_appservice import registration
from rtc_appservice.config import Config
from rtc_appservice.config_file import load_config
from rtc_appservice.core import installation as judge
from rtc_appservice.core import reachability
from rtc_appservice.core.installation import Answer, Check, Listening, Outcome
from rtc_appservice.core.keyed import Keyed
from rtc_appservice.core.words import DeviceId, ServerName, UserId
from rtc_appservice.errors import ConfigError, PortUnavailable, RtcAppserviceError, StoreUnavailable
from rtc_appservice.export.posthog_key import ask_key
from rtc_appservice.intake.device_api import RequestFailed
from rtc_appservice.intake.probes import VERSIONS, WHOAMI, ProbeServer, TemporaryDevice, ask, holds, who_listens
from rtc_appservice.intake.server import Credentials
from rtc_appservice.intake.transaction import HEARTBEAT_SECONDS
from rtc_appservice.ports import find_owner, listening
from rtc_appservice.registration import Registration
from rtc_appservice.service import database
from rtc_appservice.store import migrate
from rtc_appservice.store.embedded import is_made
from rtc_appservice.store.installation import find_stream, is_held, server_version
from rtc_appservice.store.pool import Pool, open_pool, store_errors

if TYPE_CHECKING:  # needs Olm, which is optional
    from rtc_appservice.intake.device_probe import DeviceProbe

#: A service that runs notes so every `HEARTBEAT_SECONDS`.
_ALIVE = timedelta(seconds=3 * HEARTBEAT_SECONDS)
#: The running service opens what comes by a transaction at once, what comes by `/sync` soon.
OPENED_SECONDS = 20.0
#: A step that takes longer is named on stderr meanwhile.
SLOW_SECONDS = 1.0

Report = Callable[[Check], None]
Tell = Callable[[str], None]


async def examine(config_path: Path, report: Report, tell: Tell) -> bool:
    """
    Check an installation; give whether no step failed.

    Args:
        report: Is given each check as soon as it is made.
        tell: Is told what is waited for.
    """
    async with AsyncExitStack() as stack:
        examination = _Examination(stack, report, tell)
        await examination.run(config_path)
    device = examination.temporary
    if device is not None and device.left_behind:
        text = f"the device {device.device[1]} of {device.device[0]}, made for the check, could not be deleted"
        examination.note(judge.failed("temporary_device", text, "see the log of the homeserver; it has no keys"))
    return examination.is_well


class _Examination:
    """The steps, and what each leaves for those after it."""

    config: Config
    registered: Registration
    dsn: str
    server: ProbeServer
    versions: Answer
    sender: UserId

    def __init__(self, stack: AsyncExitStack, report: Report, tell: Tell) -> None:
        self._stack = stack
        self._report = report
        self._tell = tell
        #: Steps that cannot be built on, each with the one that failed.
        self._broken: dict[str, str] = {}
        self.is_well = True
        self.pool: Pool | None = None
        self.listening = Listening.HERE
        self.temporary: TemporaryDevice | None = None
        self.probe: DeviceProbe | None = None

    async def run(self, config_path: Path) -> None:
        async def configuration() -> Check:
            return self._configuration(config_path)

        await self._step("configuration", configuration)
        await self._step("database", self._database, "configuration")
        await self._step("homeserver", self._homeserver, "configuration")
        await self._step("registration", self._registration, "homeserver")
        await self._step("ping", self._ping, "registration")
        await self._step("to_device", self._to_device, "database", "ping")
        await self._step("posthog", self._posthog, "configuration")
        await self._step("notifications", self._notifications, "registration")
        await self._step("delayed_events", self._delayed_events, "homeserver")
        await self._step("device", self._device, "database", "registration")
        await self._step("round_trip", self._round_trip, "device")

    async def _step(self, name: str, work: Callable[[], Awaitable[Check]], *needs: str) -> None:
        broken = next((self._broken[need] for need in needs if need in self._broken), None)
        if broken is not None:
            self._broken[name] = broken
            self.note(judge.skipped(name, f"needs {broken}, which failed"))
            return
        slow = asyncio.get_running_loop().call_later(SLOW_SECONDS, self._tell, f"{name}: waiting for an answer …")
        try:
            check = await work()
        except (RtcAppserviceError, *RequestFailed) as error:
            check = judge.fault(name, str(error) or type(error).__name__)
        finally:
            slow.cancel()
        if check.outcome is Outcome.FAILED:
            self._broken[name] = name
        self.note(check)

    def note(self, check: Check) -> None:
        self.is_well = self.is_well and check.outcome is not Outcome.FAILED
        self._report(check)

    # --- the installation ----------------------------------------------------------------------

    def _configuration(self, path: Path) -> Check:
        try:
            self.config = load_config(path)
            self.registered = registration.load_usable(self.config.appservice.registration)
            self.config.auditor.require()
        except ConfigError as error:
            text = judge.one_line(str(error))
            return judge.failed("configuration", text, "correct that; `rtc-appservice check` says it line by line")
        self.sender = UserId(f"@{self.registered.sender_localpart}:{self.config.homeserver.domain}")
        doubts = self.registered.doubts(domain=self.config.homeserver.domain, port=self.config.appservice.port)
        doubts += self.config.auditor.doubts()
        doubtful = f", but {judge.one_line('; '.join(doubts))}" if doubts else ""
        used = f"{path} and {self.config.appservice.registration} can be used; {self.registered.shown}"
        return judge.ok("configuration", used + doubtful)

    async def _database(self) -> Check:
        settings = self.config.database
        if settings.dsn is None and not is_made(settings.embedded_path):
            folder = settings.embedded_path
            return judge.skipped("database", f"there is none yet: without database.url, `run` makes one in {folder}")
        self.dsn = self._stack.enter_context(database(settings))
        try:
            version, current, head = await server_version(self.dsn), await migrate.current(self.dsn), migrate.head()
        except StoreUnavailable as error:
            return judge.failed("database", judge.one_line(str(error)), "start it, or correct database.url")
        check = judge.judge_database(version, current, head)
        if check.outcome is Outcome.OK:
            self.pool = await self._stack.enter_async_context(await open_pool(self.dsn, 2))
        return check

    async def _homeserver(self) -> Check:
        given = self.registered
        self.server = ProbeServer(
            Credentials(
                appservice_id=given.id,
                as_token=given.as_token,
                hs_token=given.hs_token,
                sender_localpart=given.sender_localpart,
            ),
            address=self.config.homeserver.address,
            homeserver=ServerName(self.config.homeserver.domain),
            own_user=self._doctor,
        )
        self._stack.push_async_callback(self.server.stop)
        address = self.config.homeserver.address
        # Without the token: Synapse refuses even this to one that it does not know.
        self.versions = await ask(self.server.open_client(), "GET", address + VERSIONS)
        return reachability.judge_homeserver(address, self.versions)

    async def _registration(self) -> Check:
        answer = await self.server.ask("GET", WHOAMI)
        return reachability.judge_registration(answer, self.sender, str(self.config.appservice.registration))

    # --- what reaches the service --------------------------------------------------------------

    async def _ping(self) -> Check:
        own = self.config.appservice
        self.listening = await who_listens(self.server.open_client(), own.hostname, own.port, self.registered.hs_token)
        if fault := reachability.judge_port(self.listening, own.port, find_owner(own.port)):
            return fault
        if self.listening is Listening.HERE:
            try:
                with listening(own.hostname, own.port, keys="appservice.hostname and appservice.port"):
                    await self.server.start(own.hostname, own.port)
            except PortUnavailable as error:
                return judge.failed("ping", str(error), "the service could not listen there either")
        answer, arrived = await self.server.ping()
        is_alive = await self._is_alive()
        if answer.status == 200 and not arrived and is_alive:
            self.listening = Listening.SERVICE  # elsewhere, on the same database
        if self.listening is Listening.SERVICE and is_alive is False:
            return judge.failed(
                "ping",
                "the service that runs does not use this database",
                "restart it with this configuration; mind the variables of its environment",
            )
        return reachability.judge_ping(answer, self.listening, arrived, own.address, self.versions)

    async def _to_device(self) -> Check:
        if not self.registered.users:
            return judge.skipped("to_device", "the registration shows no to-device messages (scope `rooms`)")
        temporary = await self._temporary()
        arrived = await temporary.send_to_itself(await self._arrival(temporary))
        return reachability.judge_to_device(
            arrived=arrived,
            extensions=self.server.device_lists > 0,
            refused=self.server.refused,
            listening=self.listening,
        )

    async def _arrival(self, temporary: TemporaryDevice) -> Callable[[str], Awaitable[bool]]:
        """Give what tells whether a sealed text came with a transaction, to `doctor` or to the running service."""
        found = await self._stream()
        pool = self.pool
        if self.listening is Listening.HERE or pool is None or found is None:

            async def came(text: str) -> bool:
                return text in self.server.texts

            return came
        homeserver_id, keyed = found[0], Keyed(self.config.deployment_secret)

        async def is_stored(text: str) -> bool:
            with store_errors():
                async with pool.acquire() as conn:
                    return await is_held(conn, homeserver_id, keyed.identity(text, *temporary.device))

        return is_stored

    async def _posthog(self) -> Check:
        key, host = self.config.posthog.key, self.config.posthog.host
        if key is None or host is None:
            return judge.skipped("posthog", "off")
        return judge.judge_posthog(host, await asyncio.to_thread(ask_key, key, host))

    async def _notifications(self) -> Check:
        room = self.config.notifications.room_id
        if room is None:
            return judge.skipped("notifications", "off: notifications.room_id is not set")
        return reachability.judge_notifications(room, self.sender, *await self.server.ask_room(room))

    # --- the service's own device --------------------------------------------------------------

    async def _delayed_events(self) -> Check:
        if not self.config.auditor.enabled:
            return judge.skipped("delayed_events", "off: auditor.enabled is false")
        return reachability.judge_delayed_events(self.versions)

    async def _device(self) -> Check:
        if not self.config.auditor.enabled:
            return judge.skipped("device", "off: auditor.enabled is false")
        try:
            from rtc_appservice.intake.device_probe import open_probe
        except ImportError as error:
            return judge.failed("device", f"{error.name} is missing", "pip install 'rtc-appservice[encryption]'")
        found = await self._stream()
        if self.pool is not None and found is not None:
            name = ServerName(self.config.homeserver.domain)
            secret = self.config.deployment_secret
            self.probe = await open_probe(self.pool, self.server, name, found[0], secret)
        if self.probe is not None:
            return judge.judge_device(self.probe.device[1], await self.probe.facts())
        if self.listening is Listening.SERVICE:
            return judge.failed(
                "device", "the running service has made none yet", "after `new-device`, restart it; else see its log"
            )
        return judge.skipped("device", "there is none yet: `run` makes it at its first start")

    async def _round_trip(self) -> Check:
        if self.probe is None:
            return judge.skipped("round_trip", "there is no device")
        probe = self.probe
        text = await probe.send_sealed(await self._temporary())
        if self.listening is Listening.SERVICE:
            opened: bool | None = await holds(lambda: probe.is_opened(text), OPENED_SECONDS)
        else:
            opened = await probe.opens(text)
        return judge.judge_round_trip(opened=opened, listening=self.listening)

    # --- helpers -------------------------------------------------------------------------------

    @property
    def _doctor(self) -> UserId:
        """The user whose device sends what is to be seen; of the namespace that every registration reserves."""
        return UserId(f"@{self.registered.sender_localpart}-doctor:{self.config.homeserver.domain}")

    async def _temporary(self) -> TemporaryDevice:
        if self.temporary is None:
            device = (self._doctor, DeviceId("DOCTOR" + secrets.token_hex(4).upper()))
            self.temporary = await self._stack.enter_async_context(TemporaryDevice(self.server, device))
        return self.temporary

    async def _stream(self) -> tuple[int, datetime | None] | None:
        """Give the homeserver's number in the database, and when the service last noted that it lives."""
        if self.pool is None:
            return None
        with store_errors():
            async with self.pool.acquire() as conn:
                return await find_stream(conn, ServerName(self.config.homeserver.domain))

    async def _is_alive(self) -> bool | None:
        """Tell whether the service noted in the database that it lives; None if there is no database."""
        if self.pool is None:
            return None
        found = await self._stream()
        return found is not None and found[1] is not None and found[1] > datetime.now(UTC) - _ALIVE
