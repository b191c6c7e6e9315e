"""Stage 1: the requests by which the service's own device is a member of calls (MSC4140, MSC4354)."""

from typing import Any

from mautrix.api import HTTPAPI, Method, Path

from rtc_appservice.core.words import RoomId
from rtc_appservice.intake.call_form import STICKY_SECONDS, OwnMembership

_DELAY = "org.matrix.msc4140.delay"
_STICKY = "org.matrix.msc4354.sticky_duration_ms"


class CallApi:
    """Requests made as the device."""

    def __init__(self, api: HTTPAPI) -> None:
        """Take what sends requests as the device."""
        self._api = api

    async def send(
        self, room_id: RoomId, membership: OwnMembership, content: dict[str, Any], *, delay_ms: int | None = None
    ) -> str | None:
        """Send a content to where a membership stands; with a delay, have it sent unless put off, and give its id."""
        query = {} if delay_ms is None else {_DELAY: str(delay_ms)}
        room = Path.v3.rooms[room_id]
        if membership.state_key is None:
            query[_STICKY] = str(STICKY_SECONDS * 1000)
            path = room.send[membership.event_type][self._api.get_txn_id()]
        else:
            path = room.state[membership.event_type][membership.state_key]
        answer: Any = await self._api.request(Method.PUT, path, content, query_params=query)
        delay_id = answer.get("delay_id") if isinstance(answer, dict) else None
        return delay_id if isinstance(delay_id, str) else None

    async def put_off(self, delay_id: str) -> None:
        """Begin the delay of a delayed event anew."""
        await self._delayed(delay_id, "restart")

    async def cancel(self, delay_id: str) -> None:
        """Have a delayed event not sent at all."""
        await self._delayed(delay_id, "cancel")

    async def _delayed(self, delay_id: str, action: str) -> None:
        path = Path.unstable["org.matrix.msc4140"].delayed_events[delay_id]
        await self._api.request(Method.POST, path, {"action": action})

    async def content_of(self, room_id: RoomId, kind: str, key: str) -> dict[str, Any]:
        """Give the content of a state event."""
        answer: Any = await self._api.request(Method.GET, Path.v3.rooms[room_id].state[kind][key])
        return answer if isinstance(answer, dict) else {}
