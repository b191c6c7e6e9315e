import io
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from mautrix.api import Method, Path
from mautrix.types import UserID

from rtc_appservice.core.words import UserId
from rtc_appservice.intake.own_users import NotOurUser
from rtc_appservice.intake.server import Credentials, IntakeServer

from .serving import answering, taking_nothing


class Homeserver:
    """Answers everything with `{}` and remembers as whom it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []
        self.address = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Answer."""
        self.asked.append((request.path, request.query.getall("user_id", [])))
        return web.json_response({})


@pytest.fixture
async def homeserver() -> AsyncIterator[Homeserver]:
    """Give a listening HTTP server that notes requests: nothing that must not be sent may reach it."""
    stand_in = Homeserver()
    async with answering(stand_in.answer) as stand_in.address:
        yield stand_in


@pytest.fixture
async def service(homeserver: Homeserver) -> AsyncIterator[IntakeServer]:
    """Give a started application service with one user of its own beside the sender."""
    service = taking_nothing(homeserver.address, [UserId("@rtc-auditor-witness:lab.test")])
    await service.start("127.0.0.1", 0)
    yield service
    await service.stop()


async def test_acts_as_its_own_users(service: IntakeServer, homeserver: Homeserver) -> None:
    """The sender, the users it was given and the ones added later are its own."""
    service.own_users.add(UserId("@rtc-auditor-late:lab.test"))

    await service.intent.api.request(Method.GET, Path.v3.account.whoami)
    for user in ("@rtc-auditor-witness:lab.test", "@rtc-auditor-late:lab.test"):
        await service.intent.api.intent(UserID(user)).api.request(Method.GET, Path.v3.account.whoami)

    assert [users for _, users in homeserver.asked] == [
        ["@rtc-auditor:lab.test"],
        ["@rtc-auditor-witness:lab.test"],
        ["@rtc-auditor-late:lab.test"],
    ]


async def test_refuses_anybody_else_however_asked(service: IntakeServer, homeserver: Homeserver) -> None:
    """No way that mautrix or aiohttp offers lets a request out as a user the service did not create."""
    alice = UserID("@alice:lab.test")
    api = service.intent.api

    with pytest.raises(NotOurUser):
        await api.intent(alice).api.request(Method.GET, Path.v3.account.whoami)
    with pytest.raises(NotOurUser):
        await api.user(alice).request(Method.GET, Path.v3.account.whoami)
    with pytest.raises(NotOurUser):
        await api.intent(alice, token="as", real_user_as_token=True).api.request(Method.GET, Path.v3.account.whoami)
    api.as_user_id = alice
    with pytest.raises(NotOurUser):
        await api.request(Method.GET, Path.v3.account.whoami)
    api.as_user_id = None
    for query in ("?user_id=%40alice%3Alab.test", "?user_id=@rtc-auditor:lab.test&user_id=@alice:lab.test"):
        with pytest.raises(NotOurUser):
            await service.http_session.get(f"{homeserver.address}/_matrix/client/v3/sync{query}")

    assert homeserver.asked == []


OWN = {"type": "m.id.user", "user": "@rtc-auditor-witness:lab.test"}
ALICE = {"type": "m.id.user", "user": "@alice:lab.test"}
LOGIN = {"type": "m.login.application_service", "identifier": OWN, "device_id": "D"}


async def test_logs_its_own_users_in(service: IntakeServer, homeserver: Homeserver) -> None:
    """An appservice login gives a token for the user that stands in the body: one of its own."""
    await service.intent.api.request(Method.POST, Path.v3.login, LOGIN)

    assert ["/_matrix/client/v3/login"] == [path for path, _ in homeserver.asked]


@pytest.mark.parametrize(
    "body",
    [
        {**LOGIN, "identifier": ALICE},
        {**LOGIN, "identifier": {"type": "m.id.user", "user": "rtc-auditor-witness"}},
        {**LOGIN, "identifier": {**OWN, "type": "m.id.thirdparty"}},
        {**LOGIN, "identifier": {**OWN, "address": "alice@lab.test"}},
        {**LOGIN, "identifier": {**OWN, "user": None}},
        {**LOGIN, "identifier": "@rtc-auditor-witness:lab.test"},
        {**LOGIN, "user": "@alice:lab.test"},
        {**LOGIN, "type": "m.login.password", "password": "x"},
        {"type": "m.login.application_service"},
        [LOGIN],
    ],
)
async def test_logs_in_nobody_else(service: IntakeServer, homeserver: Homeserver, body: Any) -> None:
    """Whatever a homeserver could read as somebody else's login does not leave."""
    with pytest.raises(NotOurUser):
        await service.http_session.post(homeserver.address + "/_matrix/client/v3/login", json=body)

    assert homeserver.asked == []


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(LOGIN)[:-1] + f', "identifier": {json.dumps(ALICE)}}}',
        json.dumps({**LOGIN, "identifier": ALICE})[:-1] + f', "identifier": {json.dumps(OWN)}}}',
        json.dumps(LOGIN).replace('"user"', '"user": "@alice:lab.test", "user"'),
        json.dumps(LOGIN).encode("utf-16"),
        "[" * 100_000,
        "{",
        "",
    ],
    ids=["twice", "twice, ours last", "user twice", "utf-16", "deep", "cut", "empty"],
)
async def test_logs_in_by_a_plain_body_only(service: IntakeServer, homeserver: Homeserver, text: Any) -> None:
    """What another reader might take for something else does not leave."""
    with pytest.raises(NotOurUser):
        await service.http_session.post(homeserver.address + "/_matrix/client/v3/login", data=text)

    assert homeserver.asked == []


async def test_does_not_log_in_by_what_it_cannot_see(service: IntakeServer, homeserver: Homeserver) -> None:
    """A stream is read but once, and a packed body is not read at all."""
    text = json.dumps(LOGIN).encode()

    async def stream() -> AsyncIterator[bytes]:
        yield text

    for data, headers in ((stream(), {}), (io.BytesIO(text), {}), (text, {"Content-Encoding": "deflate"})):
        with pytest.raises(NotOurUser):
            await service.http_session.post(homeserver.address + "/_matrix/client/v3/login", data=data, headers=headers)

    assert homeserver.asked == []


@pytest.mark.parametrize(
    "path",
    [
        "/_matrix/client/r0/login/",
        "/_matrix/client/v3/login/",
        "/_matrix/client/v3/logi%6E/",
        "/_synapse/admin/v1/users/@alice:lab.test/login",
    ],
)
async def test_logs_in_by_one_path_only(service: IntakeServer, homeserver: Homeserver, path: str) -> None:
    """Other logins take the user from elsewhere."""
    with pytest.raises(NotOurUser):
        await service.http_session.post(homeserver.address + path, json=LOGIN)

    assert homeserver.asked == []


async def test_does_not_follow_a_redirect_to_somebody_else(service: IntakeServer) -> None:
    """A redirect that names another user is a request like any other."""

    async def redirect(request: web.Request) -> web.Response:
        raise web.HTTPFound("/elsewhere?user_id=@alice:lab.test")

    app = web.Application()
    app.router.add_get("/", redirect)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        with pytest.raises(NotOurUser):
            await service.http_session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/")
    finally:
        await runner.cleanup()


def test_credentials_do_not_show_their_tokens() -> None:
    """A repr ends up in a log."""
    credentials = Credentials(appservice_id="rtc", as_token="secret-1", hs_token="secret-2", sender_localpart="bot")

    assert "secret" not in repr(credentials)
