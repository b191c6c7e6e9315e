"""Members of calls as recorded clients are, and what a homeserver shows of the service's device in a call."""

import json
import secrets
from pathlib import Path
from typing import Any

from mautrix.api import Method
from mautrix.api import Path as ApiPath

from tests.acceptance.sealed_room import BOT, Sender

STATE_TYPE = "org.matrix.msc3401.call.member"
STICKY_TYPE = "org.matrix.msc4143.rtc.member"
_RECORDING = Path(__file__).parent.parent / "data" / "recordings" / "sticky-generations" / "transactions.jsonl"
#: Whose client spoke which dialect in the recording.
_SPEAKERS = {"js_39": "@alice:lab.test", "js_41": "@bob:lab.test", "js_43": "@carol:lab.test"}


class StickyCaller:
    """A client in a call by a sticky event, in the dialect of one js-sdk release."""

    def __init__(self, sender: Sender, dialect: str) -> None:
        """Take a client that is logged in."""
        self._sender = sender
        self._key = secrets.token_hex(8)
        self._join, self._leave = (
            json.loads(json.dumps(event["content"]).replace(event["content"]["msc4354_sticky_key"], self._key))
            for line in _RECORDING.read_text().splitlines()
            for event in json.loads(line)["body"].get("events", ())
            if event["type"] == STICKY_TYPE and event["sender"] == _SPEAKERS[dialect]
        )
        client = sender.client
        self._join["member"] |= {"user_id": client.mxid, "device_id": client.device_id}

    async def call(self, room_id: str, *, live: bool = True, sealed: bool = False) -> None:
        """Join the call of a room, or leave it; sealed, as clients do in an encrypted room."""
        kind, content = STICKY_TYPE, self._join if live else self._leave
        if sealed:
            kind, content = "m.room.encrypted", await self._sender.seal(room_id, kind, content)
        api = self._sender.client.api
        path = ApiPath.v3.rooms[room_id].send[kind][api.get_txn_id()]
        await api.request(Method.PUT, path, content, query_params={"org.matrix.msc4354.sticky_duration_ms": "3600000"})


async def of_device(sender: Sender, room_id: str) -> list[dict[str, Any]]:
    """Give the call memberships the service's device has sent to a room, as the homeserver shows them, oldest first."""
    path = ApiPath.v3.rooms[room_id].messages
    answer = await sender.client.api.request(Method.GET, path, query_params={"dir": "b", "limit": "200"})
    kinds = (STATE_TYPE, STICKY_TYPE)
    return [event for event in reversed(answer["chunk"]) if event["type"] in kinds and event["sender"] == BOT]


async def in_call(sender: Sender, room_id: str, *, kind: str | None = None) -> bool:
    """Tell whether the service's device is in the call of a room, by a membership of a type."""
    found = await of_device(sender, room_id)
    return bool(found) and is_join(found[-1]) and kind in (None, found[-1]["type"])


async def was_in_call(sender: Sender, room_id: str) -> bool:
    """Tell whether the service's device was in the call of a room and has left it."""
    found = await of_device(sender, room_id)
    return bool(found) and not is_join(found[-1])


def is_join(event: dict[str, Any]) -> bool:
    """Tell whether a membership event is a join."""
    return "application" in event["content"]
