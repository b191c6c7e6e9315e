"""
Stage 1: how the homeserver's client API is asked, as which user of our own.

Every request goes through the session it is given, whose middleware lets it out only as a user of our own.
"""

import logging
from typing import Any

import aiohttp
from mautrix.api import HTTPAPI, Method, Path
from mautrix.errors import MatrixRequestError
from mautrix.types import UserID
from mautrix.util.logging import TraceLogger

#: mautrix logs requests with their bodies: nothing below critical may come out.
QUIET = TraceLogger("rtc_appservice.intake.quiet", logging.CRITICAL)


def client_api(address: str, as_token: str, session: aiohttp.ClientSession, **act_as: Any) -> HTTPAPI:
    """Give what sends requests to a homeserver: once each, as the registration's sender unless told as whom."""
    return HTTPAPI(base_url=address, token=as_token, client_session=session, default_retry_count=0, log=QUIET, **act_as)


async def register(api: HTTPAPI, user_id: UserID) -> None:
    """Create a user of our own by requests of the sender, if it is not there; raises MatrixError."""
    localpart = user_id.partition(":")[0].removeprefix("@")
    content = {"type": "m.login.application_service", "username": localpart, "inhibit_login": True}
    try:
        await api.request(Method.POST, Path.v3.register, content)
    except MatrixRequestError as error:
        if getattr(error, "errcode", None) != "M_USER_IN_USE":
            raise
