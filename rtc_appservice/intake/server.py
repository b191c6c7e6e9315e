"""
Stage 1: the HTTP side of the application service: routes, token, body limit, status codes.

It is a mautrix `AppService` (intents, API client, ping, `/_matrix/mau/live` and `ready`) whose transaction
handler, token check, body limit, state store and error answers are replaced. The stock ones (mautrix 0.21.1)
answer 200 for failed writes, compare tokens with `!=`, stop at 1 MiB (a full Synapse transaction has some
12.5 MiB), log whole events, and write a file from inside the event loop.
"""

import asyncio
import hmac
import logging
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import aiohttp
import orjson
from aiohttp import web
from mautrix.appservice import AppService, AppServiceAPI, ASStateStore
from mautrix.client.state_store import MemoryStateStore
from mautrix.types import UserID
from msgspec import Struct

from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import ServerName, UserId
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.intake.faults import describe
from rtc_appservice.intake.json_text import JsonAnswer
from rtc_appservice.intake.own_users import OwnUsersOnly
from rtc_appservice.intake.transaction import BadBody, Take
from rtc_appservice.repeats import Repeats

_log = logging.getLogger("rtc_appservice.intake")

DEFAULT_MAX_BODY_BYTES = 64 * 1024 * 1024

#: What has not come or is not stored when the service was told to stop for so long is cut; it will be sent again.
STOP_SECONDS = 3.0
#: The homeserver (Synapse) waits 60 s for an answer: a body still under way then has nobody waiting for it.
BODY_SECONDS = 60.0
#: A request of ours to the homeserver is given up after this: a `/sync` waits 30 s, a join may never be answered.
REQUEST_SECONDS = 60.0
#: Longer than a homeserver keeps an idle connection (Synapse: 2 min), lest it writes into one that is being closed.
IDLE_SECONDS = 300.0

#: Called once for every transaction request: result (`stored`, `nothing`, `refused`, `failed`), seconds, what it held.
Observe = Callable[[str, float, Intake | None], None]

#: An access log would hold the request line, and with it a token given in the query.
_no_access_log = logging.getLogger("rtc_appservice.intake.access")
_no_access_log.disabled = True

_ERRCODE = web.ResponseKey("errcode", str)
#: Answers that stop the homeserver's queue, or that somebody else gets.
_REFUSALS = (400, 401, 403, 408, 413)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Credentials(Struct, frozen=True, kw_only=True):
    """What the registration says about who talks to whom. Its repr shows no token."""

    appservice_id: str
    as_token: str
    hs_token: str
    sender_localpart: str

    def __repr__(self) -> str:
        """Leave the tokens out: a repr ends up in logs."""
        return f"Credentials(appservice_id={self.appservice_id!r}, sender_localpart={self.sender_localpart!r})"


class _Forgetful(MemoryStateStore, ASStateStore):
    """Room state in memory, and no file: the service keeps what it needs in PostgreSQL."""

    def __init__(self) -> None:
        MemoryStateStore.__init__(self)
        ASStateStore.__init__(self)


class IntakeServer(AppService):
    """The application service as the homeserver sees it."""

    def __init__(
        self,
        credentials: Credentials,
        *,
        address: str,
        homeserver: ServerName,
        take: Take,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        own_users: Iterable[UserId] = (),
        observe: Observe = lambda result, seconds, intake: None,
    ) -> None:
        """
        Take what is needed to serve one homeserver; `start` opens the port.

        Args:
            address: Base address of the homeserver's client API.
            take: Stores one transaction, whose body it is given to read, and returns after the commit.
            own_users: Users the service created, beside its sender: the only ones it may act as.
        """
        if not credentials.hs_token:
            raise ValueError("hs_token is empty")
        aiohttp_params = {"client_max_size": max_body_bytes, "middlewares": [self._answer_as_matrix]}
        with warnings.catch_warnings():
            # mautrix 0.21.1 passes `loop=` to aiohttp, which calls that deprecated.
            warnings.simplefilter("ignore", DeprecationWarning)
            super().__init__(
                server=address,
                domain=homeserver,
                as_token=credentials.as_token,
                hs_token=credentials.hs_token,
                bot_localpart=credentials.sender_localpart,
                id=credentials.appservice_id,
                state_store=_Forgetful(),
                aiohttp_params=aiohttp_params,
            )
        #: mautrix 0.21.1 sets it on starting only, and looks at it on stopping.
        self.runner: web.AppRunner | None = None
        self._hs_token = credentials.hs_token.encode()
        self._max_body_bytes = max_body_bytes
        self._take = take
        self._observe = observe
        #: Whom the service may act as. Who creates a user adds it here.
        self.own_users = {UserId(self.bot_mxid), *own_users}
        self._listener: asyncio.Server | None = None
        self._repeats = Repeats()

    # --- life ----------------------------------------------------------------------------------

    def open_client(self) -> aiohttp.ClientSession:
        """Give the session that every request goes out by; it may be wanted before the port is open."""
        if self._http_session is None:
            self._http_session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self.connection_limit),
                headers={"User-Agent": self.default_ua},
                middlewares=(OwnUsersOnly(self.own_users),),
                response_class=JsonAnswer,
                timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS),
            )
        return self._http_session

    async def start(self, host: str = "127.0.0.1", port: int = 29331) -> None:
        """Open the API client and listen; port 0 takes a free one, see `port`."""
        await self.state_store.open()
        loop = asyncio.get_running_loop()
        self._intent = AppServiceAPI(
            base_url=self.server,
            bot_mxid=UserID(self.bot_mxid),
            log=self.log,
            token=self.as_token,
            state_store=self.state_store,
            client_session=self.open_client(),
        ).bot_intent()
        self.runner = web.AppRunner(self.app, shutdown_timeout=STOP_SECONDS)
        await self.runner.setup()
        server = self.runner.server
        if server is None:
            raise RuntimeError("aiohttp set up no server")
        self._listener = await loop.create_server(
            lambda: _DiscreetProtocol(
                server, loop=loop, access_log=_no_access_log, logger=_log, keepalive_timeout=IDLE_SECONDS
            ),
            host,
            port,
        )
        self.ready = True

    async def stop(self) -> None:
        """Stop listening, let running requests end, close the API client."""
        self.ready = False
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        await super().stop()

    @property
    def port(self) -> int:
        """The port listened on."""
        if self._listener is None:
            raise RuntimeError("not started")
        return int(self._listener.sockets[0].getsockname()[1])

    # --- routes --------------------------------------------------------------------------------

    def register_routes(self, app: web.Application) -> None:
        """Add the routes of the application service API, and the ones from before it was versioned."""
        for prefix in ("/_matrix/app/v1", ""):
            app.router.add_put(prefix + "/transactions/{transaction_id}", self._receive)
            app.router.add_get(prefix + "/users/{user_id}", self._know_nothing)
            app.router.add_get(prefix + "/rooms/{alias}", self._know_nothing)
        app.router.add_post("/_matrix/app/v1/ping", self._answer_ping)

    async def _receive(self, request: web.Request) -> web.Response:
        """Take one transaction. The id is not looked at: what is a duplicate is decided on its content."""
        started = time.perf_counter()
        intake = None
        result = "failed"
        try:
            refusal = self._refuse(request)
            if refusal is not None:
                result = "refused"
                return refusal
            intake = await self._take(partial(_read, request))
            result = "stored" if intake.observations or intake.envelopes else "nothing"
            return web.Response(body=b"{}", content_type="application/json")
        except (BadBody, web.HTTPClientError):
            result = "refused"
            raise
        finally:
            self._observe(result, time.perf_counter() - started, intake)

    async def _know_nothing(self, request: web.Request) -> web.Response:
        """Answer a user or alias query: the service creates neither on demand."""
        return self._refuse(request) or matrix_error(404, "M_NOT_FOUND", "There is no such user or alias.")

    async def _answer_ping(self, request: web.Request) -> web.Response:
        refusal = self._refuse(request)
        if refusal is not None:
            return refusal
        try:
            body = orjson.loads(await _read(request))
        except orjson.JSONDecodeError:
            return matrix_error(400, "M_NOT_JSON", "The body is not JSON.")
        if not isinstance(body, dict):
            return matrix_error(400, "M_BAD_JSON", "The body is not an object.")
        return web.Response(body=b"{}", content_type="application/json")

    def _refuse(self, request: web.Request) -> web.Response | None:
        """Give the answer for a request without the homeserver's token, None if it has it."""
        header = request.headers.get("Authorization")
        if header is not None:
            scheme, _, given = header.partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else ""
        else:
            given = request.query.get("access_token", "")
        if not given:
            return matrix_error(401, "M_MISSING_TOKEN", "The homeserver's token is missing.")
        if not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self._hs_token):
            return matrix_error(403, "M_FORBIDDEN", "The token is not the homeserver's (hs_token in the registration).")
        return None

    # --- errors --------------------------------------------------------------------------------

    @web.middleware
    async def _answer_as_matrix(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Answer, and tell the operator now and then of what was refused: a wrong token, say, stops everything."""
        response = await self._answer(request, handler)
        if response.status in _REFUSALS:
            errcode = response.get(_ERRCODE)
            count = self._repeats.note((response.status, errcode))
            if count is not None:
                _log.warning(
                    "requests were refused", extra={"status": response.status, "errcode": errcode, "count": count}
                )
        return response

    async def _answer(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Turn whatever went wrong into a Matrix error, without a word of what the request held."""
        try:
            return await handler(request)
        except BadBody as error:
            return matrix_error(400, error.errcode, str(error))
        except web.HTTPRequestEntityTooLarge:
            return matrix_error(
                413, "M_TOO_LARGE", f"The body has more than {self._max_body_bytes} bytes (appservice.max_body_bytes)."
            )
        except web.HTTPException as error:
            return matrix_error(error.status, "M_UNRECOGNIZED", error.reason)
        except StoreUnavailable as error:
            count = self._repeats.note(StoreUnavailable)
            if count is not None:
                extra = {**describe(error), "count": count}
                _log.error("a transaction was not stored; the homeserver will send it again", extra=extra)
            return matrix_error(503, "M_UNKNOWN", "The database did not take the transaction. Send it again.")
        except Exception as error:  # noqa: BLE001 - the last line before aiohttp, which would log the error's text
            _log.error("a request failed", extra=describe(error))
            return matrix_error(500, "M_UNKNOWN", "Internal error.")


async def _read(request: web.Request) -> bytes:
    """Read a body; one that is not encoded as it says is a BadBody, one that does not end is 408."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    except web.RequestPayloadError:
        pass
    # Raised out here, lest the decoder's error become the context of ours.
    raise BadBody("M_UNKNOWN", "The body is not encoded as its headers say.")


class _DiscreetProtocol(web.RequestHandler):
    """aiohttp's connection handler, which would log and answer what it could not parse: bytes of a body, perhaps."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is not HTTP, or that failed outside the routes."""
        del message
        self.logger.debug("a connection sent something that is not a request", extra=describe(exc))
        response = matrix_error(status, "M_UNKNOWN", "The request could not be read.")
        response.force_close()
        return response

    def log_debug(self, *args: Any, **kwargs: Any) -> None:
        """Log the class of what went wrong on a connection, at debug."""
        self.logger.debug("a connection ended early", extra=describe(kwargs.get("exc_info")))

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log the class of what went wrong on a connection."""
        error = kwargs.get("exc_info")
        # aiohttp reads on after the answer, and meets the same fault of the sender's.
        level = logging.DEBUG if isinstance(error, web.RequestPayloadError) else logging.ERROR
        self.logger.log(level, "a connection failed", extra=describe(error))


def matrix_error(status: int, errcode: str, message: str) -> web.Response:
    """Give an HTTP error as Matrix writes it. The one place where errors are written."""
    body = orjson.dumps({"errcode": errcode, "error": message})
    response = web.Response(status=status, body=body, content_type="application/json")
    response[_ERRCODE] = errcode
    return response
