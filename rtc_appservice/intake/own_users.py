"""
Stage 1: the one choke point for acting as somebody.

With a wide user namespace the appservice token could act as every local user. Every request of the service
goes through one aiohttp session, and this middleware of that session lets a request out only as a user the
service created itself. mautrix offers several ways to masquerade (`intent()`, `api.as_user_id`, `user_id` in
the query, a media upload straight on the session); all of them end here.
"""

from collections.abc import Container

import aiohttp

from rtc_appservice.core.model import UserId
from rtc_appservice.errors import RtcAppserviceError

#: The last segment of the path of `POST /_matrix/client/v3/login`, which mints tokens for a user in the namespace.
_LOGIN = "login"


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
        if request.method == "POST" and request.url.path.rstrip("/").endswith("/" + _LOGIN):
            raise NotOurUser
        return await handler(request)
