"""
Stage 1: the one choke point for acting as somebody.

With a wide user namespace the appservice token could act as every local user. Every request of the service
goes through one aiohttp session, and this middleware of that session lets a request out only as a user the
service created itself. mautrix offers several ways to masquerade (`intent()`, `api.as_user_id`, `user_id` in
the query, a media upload straight on the session); all of them end here.

A login mints a token for the user that its body names, so its body is read here too.
"""

import json
from collections.abc import Container
from typing import Any

import aiohttp
from aiohttp.payload import BytesPayload

from rtc_appservice.core.words import UserId
from rtc_appservice.errors import RtcAppserviceError

#: Whatever else ends so is a login too, and refused (Synapse's `/_synapse/admin/v1/users/{user}/login` for one).
_LOGIN = "/login"
#: The one login there is a use for: the service's own device, where the homeserver does not create it without.
_LOGIN_PATH = "/_matrix/client/v3/login"
_LOGIN_TYPE = "m.login.application_service"
_LOGIN_FIELDS = frozenset({"type", "identifier", "device_id", "initial_device_display_name"})


class NotOurUser(RtcAppserviceError):
    """The service was about to act as a user it did not create itself; the request was not sent."""


class OwnUsersOnly:
    """Client middleware: refuses every request that would be made as a user outside `own_users`."""

    def __init__(self, own_users: Container[UserId]) -> None:
        """Take the users the service created itself, its sender among them."""
        self._own_users = own_users

    async def __call__(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        """Send the request on, or raise NotOurUser before a byte of it has left."""
        for user in request.url.query.getall("user_id", ()):
            if UserId(user) not in self._own_users:
                raise NotOurUser
        path = request.url.path
        if request.method == "POST" and path.rstrip("/").endswith(_LOGIN):
            named = _who_logs_in(request) if path == _LOGIN_PATH else None
            if named is None or named not in self._own_users:
                raise NotOurUser
        return await handler(request)


def _who_logs_in(request: aiohttp.ClientRequest) -> UserId | None:
    """Give the user an appservice login names, None unless it can be read in one way only."""
    if not isinstance(request.body, BytesPayload) or "Content-Encoding" in request.headers:
        return None
    try:
        login = json.loads(request.body.decode(), object_pairs_hook=_table)
    except (ValueError, RecursionError):
        return None
    if not isinstance(login, dict) or login.get("type") != _LOGIN_TYPE or not login.keys() <= _LOGIN_FIELDS:
        return None
    identifier = login.get("identifier")
    if not isinstance(identifier, dict) or identifier.keys() != {"type", "user"} or identifier["type"] != "m.id.user":
        return None
    user = identifier["user"]
    return UserId(user) if isinstance(user, str) else None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Give an object; raises ValueError where a name stands twice, which readers take differently."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError
    return table
