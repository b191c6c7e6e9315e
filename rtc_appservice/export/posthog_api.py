"""
PostHog's REST API, as far as dashboards need it: list, create, update, with a personal API key.

The API is that of the app host, not of the host events are sent to. It allows 480 requests a minute and 4,800 an
hour: 429 and errors of the server are waited out. A POST that may have been carried out is never repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import aiohttp
import msgspec

from rtc_appservice.errors import PostHogRefused

Kind = Literal["dashboards", "insights"]
Object = dict[str, Any]

PAGE = 100
ATTEMPTS = 6
TIMEOUT_SECONDS = 60.0
#: A server that asks for more patience than this is left alone.
WAIT_LIMIT_SECONDS = 120.0

_SCOPES = "dashboard:read, dashboard:write, insight:read and insight:write"


class PostHogApi:
    """One project of one PostHog."""

    def __init__(
        self,
        client: aiohttp.ClientSession,
        *,
        host: str,
        project: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Take a client that is authorized already, and where the project is; `tell` hears of waiting."""
        self._client = client
        self._host = host.rstrip("/")
        self._project = project
        self._sleep = sleep
        self._tell = tell

    async def find(self, kind: Kind, search: str) -> list[Object]:
        """Give every object, page by page, that the server finds for a text; not those deleted softly."""
        found: list[Object] = []
        while True:
            query = {"search": search, "limit": str(PAGE), "offset": str(len(found))}
            page = await self._request("GET", f"{kind}/", params=query)
            results = page.get("results") or []
            found += results
            if not results or not page.get("next"):
                return [each for each in found if not each.get("deleted")]

    async def read(self, kind: Kind, number: int) -> Object:
        """Give one object."""
        return await self._request("GET", f"{kind}/{number}/")

    async def create(self, kind: Kind, content: Mapping[str, Any]) -> Object:
        """Make an object; give it as the server made it."""
        return await self._request("POST", f"{kind}/", content)

    async def update(self, kind: Kind, number: int, content: Mapping[str, Any]) -> Object:
        """Change the given keys of an object; give it as the server has it now."""
        return await self._request("PATCH", f"{kind}/{number}/", content)

    async def _request(
        self,
        method: str,
        path: str,
        content: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Object:
        """
        Send one request, again after what passes; give the object of the answer.

        Raises:
            PostHogRefused: if it was refused, or was not answered in the end.
        """
        url = f"{self._host}/api/projects/{self._project}/{path}"
        for attempt in range(1, ATTEMPTS + 1):
            wait = 2.0 ** (attempt - 1)
            try:
                # A redirect would take the key elsewhere.
                async with self._client.request(
                    method, url, json=content, params=params, allow_redirects=False
                ) as response:
                    if response.status < 300:
                        return _object(await response.read(), f"{method} {path}")
                    problem = f"{method} {path}: HTTP {response.status}"
                    passes = response.status == 429 or (response.status >= 500 and method != "POST")
                    if not passes:
                        raise PostHogRefused(f"{problem}{_advice(response)}{await _detail(response)}")
                    wait = max(wait, _retry_after(response))
            except (aiohttp.ClientError, TimeoutError) as error:
                problem = f"{method} {path}: {type(error).__name__}"
                if method == "POST":
                    raise PostHogRefused(f"{problem}; look whether it was made, then try again") from error
            if attempt == ATTEMPTS or wait > WAIT_LIMIT_SECONDS:
                break
            self._tell(f"{problem}; trying again in {wait:.0f} s")
            await self._sleep(wait)
        raise PostHogRefused(f"{problem}, after {attempt} attempts at {self._host}")


@asynccontextmanager
async def open_api(
    host: str, project: str, key: str, *, tell: Callable[[str], None] = lambda text: None
) -> AsyncIterator[PostHogApi]:
    """Give the API of one project, with the personal API key, for as long as it is in use."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}, timeout=timeout) as client:
        yield PostHogApi(client, host=host, project=project, tell=tell)


def _object(body: bytes, what: str) -> Object:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise PostHogRefused(f"{what}: the answer is no JSON object (is this the app host?)") from error


def _retry_after(response: aiohttp.ClientResponse) -> float:
    """Give the seconds the server asks to wait; 0 if it names none."""
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _advice(response: aiohttp.ClientResponse) -> str:
    if response.status in (401, 403):
        return f" (the personal API key must have the scopes {_SCOPES} for this project)"
    if response.status == 404:
        return " (is this the app host, and the number of the project?)"
    if response.status < 400:
        return f" (it leads to {response.headers.get('Location', 'nowhere')}: name that host)"
    return ""


async def _detail(response: aiohttp.ClientResponse) -> str:
    """Give what the server says is wrong, as PostHog says it, cut short."""
    try:
        detail = msgspec.json.decode(await response.read(), type=dict[str, Any]).get("detail")
    except msgspec.DecodeError:
        return ""
    return f": {str(detail)[:200]}" if detail else ""
