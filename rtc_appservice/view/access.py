"""
Stage 7: who may look at the pages, and who is shown user and room ids.

Whoever has the token sees all. On loopback, so does who asks from this machine by a loopback name; what a proxy
passes on, or a page elsewhere makes a browser ask under another name, gets pseudonyms instead. A listener bound
elsewhere answers nobody without the token.
"""

import hmac
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address

from aiohttp import hdrs, web

_LOOPBACK_ONLY = (
    "The pages are shown on loopback only, because no token is configured: set metrics.token or metrics.token_file,"
    " and give it as bearer token, or as the password when the browser asks.\n"
)
_FORWARDED = (hdrs.FORWARDED, hdrs.X_FORWARDED_FOR, hdrs.X_FORWARDED_HOST, "X-Real-IP", hdrs.VIA)


@dataclass(frozen=True, kw_only=True)
class Names:
    """How rooms, users and devices are called on a page."""

    room: Callable[[str], str]
    user: Callable[[str], str]
    device: Callable[[str, str], str]  #: takes the user id too: a device is a device of one user
    clear: bool = False  #: they are the ids themselves


#: The ids themselves.
CLEAR = Names(room=str, user=str, device=lambda _user_id, device_id: device_id, clear=True)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Decides who sees what."""

    host: str  #: what the listener is bound to
    token: str | None
    pseudonyms: Names

    def names_for(self, request: web.Request) -> Names:
        """
        Give how to call rooms and users to who asks.

        Raises:
            HTTPUnauthorized: without the right token, where one is needed, or with a wrong one.
            HTTPForbidden: if one is needed and none is configured.
        """
        given = _given_token(request)
        if given is not None and self.token is not None:
            if hmac.compare_digest(given.encode(), self.token.encode()):
                return CLEAR
            raise _unauthorized()
        if not is_loopback(self.host):
            raise web.HTTPForbidden(text=_LOOPBACK_ONLY) if self.token is None else _unauthorized()
        return CLEAR if _is_local(request) else self.pseudonyms


def is_loopback(host: str) -> bool:
    """Say whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _is_local(request: web.Request) -> bool:
    named = request.url.host or ""
    proxied = any(header in request.headers for header in _FORWARDED)
    return not proxied and is_loopback(request.remote or "") and is_loopback(named)


def _given_token(request: web.Request) -> str | None:
    """Give the bearer token, or the password that a browser asked for; None if there is neither."""
    scheme, _, value = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return None


def _unauthorized() -> web.HTTPUnauthorized:
    # A browser knows only Basic: it asks for name and password, and the token is the password.
    return web.HTTPUnauthorized(
        text="A token is needed: metrics.token of the configuration.\n",
        headers={hdrs.WWW_AUTHENTICATE: 'Basic realm="rtc-appservice", charset="UTF-8"'},
    )
