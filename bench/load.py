"""
One deterministic load: transactions as Synapse sends them, as ready HTTP requests.

The same arguments give the same bytes. A placeholder in the transaction and event ids is replaced before each
measurement, so that no server can live on duplicates of an earlier one.
"""

import base64
import random
from collections.abc import Iterator
from typing import Any

import orjson
from msgspec import Struct

SERVER = "bench.test"
TOKEN = "bench-hs-token"
_RUN = b"@RUN@@"
_ROOMS = 400
#: Calls happen in few of the rooms. What else is said there may hold a sealed key event, and is read too.
_CALL_ROOMS = 20
_USERS = 400
_MEGOLM = "A" * 380


class Load(Struct, frozen=True):
    """What is sent: events a transaction, how many in a hundred are MatrixRTC, and homeservers at once."""

    events: int
    rtc_percent: int
    homeservers: int

    @property
    def name(self) -> str:
        """How it is called in the table."""
        return f"{self.events} ev, {self.rtc_percent} %, {self.homeservers} HS"


class Batch(Struct):
    """Requests of one homeserver, and the relevant events in them."""

    requests: list[bytes]
    relevant: list[int]


def prepare(load: Load, lane: int, count: int, started_ms: int) -> Batch:
    """Make `count` transactions for one homeserver; the same arguments give the same bytes."""
    rng = random.Random(f"{load.events}/{load.rtc_percent}/{lane}")  # noqa: S311 - the point is that it repeats
    batch = Batch(requests=[], relevant=[])
    owed = 0
    for number in range(count):
        events = []
        relevant = 0
        for position in range(load.events):
            owed += load.rtc_percent
            is_rtc = owed >= 100
            if is_rtc:
                owed -= 100
                relevant += 1
            ident = f"{_RUN.decode()}{lane:02d}{number:06d}{position:03d}"
            events.append(_event(rng, ident, started_ms, is_rtc))
        body = orjson.dumps({"events": events, "ephemeral": [], "de.sorunome.msc2409.to_device": []})
        batch.requests.append(_request(f"{_RUN.decode()}{lane:02d}{number:06d}", body))
        batch.relevant.append(relevant)
    return batch


def stamp(batch: Batch, run: int) -> list[bytes]:
    """Give the requests with event ids of their own for this run."""
    tag = f"{run:06d}".encode()
    return [request.replace(_RUN, tag) for request in batch.requests]


def _request(transaction_id: str, body: bytes) -> bytes:
    head = (
        f"PUT /_matrix/app/v1/transactions/{transaction_id} HTTP/1.1\r\n"
        "Host: localhost\r\nUser-Agent: Synapse/1.163.2\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _event(rng: random.Random, ident: str, started_ms: int, is_rtc: bool) -> dict[str, Any]:
    user = rng.randrange(_USERS)
    sender = f"@user{user:04d}:{SERVER}"
    body = _rtc(rng, sender, started_ms) if is_rtc else _ordinary(rng, sender)
    age = rng.randrange(20, 400)
    unsigned = {"age": age, **body.pop("unsigned", {})}
    return {
        **body,
        "age": age,
        "event_id": f"${ident}{rng.randbytes(12).hex()}",
        "origin_server_ts": started_ms - age,
        "room_id": f"!{rng.randrange(_CALL_ROOMS if is_rtc else _ROOMS):03d}AL86cIuyttCfnRx71w9zCC53MSy4X2SO2ATPb",
        "sender": sender,
        "unsigned": unsigned,
        "user_id": sender,
    }


def _rtc(rng: random.Random, sender: str, started_ms: int) -> dict[str, Any]:
    device = f"DEV{rng.randrange(10)}"
    if rng.random() < 0.5:
        key = rng.randbytes(16)
        content: dict[str, Any] = {
            "call_id": "",
            "device_id": device,
            "keys": [{"index": rng.randrange(16), "key": _unpadded(key)}],
            "sent_ts": started_ms,
        }
        return {"type": "io.element.call.encryption_keys", "content": content}
    content = {
        "application": "m.call",
        "call_id": "",
        "device_id": device,
        "expires": 14400000,
        "focus_active": {"focus_selection": "oldest_membership", "type": "livekit"},
        "foci_preferred": [
            {"livekit_alias": "!room", "livekit_service_url": "https://sfu.bench.test/jwt", "type": "livekit"}
        ],
        "scope": "m.room",
    }
    return {
        "type": "org.matrix.msc3401.call.member",
        "state_key": f"_{sender}_{device}",
        "content": content,
        "prev_content": {},
        "unsigned": {"prev_content": {}, "prev_sender": sender},
    }


def _unpadded(key: bytes) -> str:
    return base64.b64encode(key).decode().rstrip("=")


_WORDS = ("call", "starts", "at", "ten", "please", "bring", "the", "notes", "from", "last", "week")


def _ordinary(rng: random.Random, sender: str) -> dict[str, Any]:
    dice = rng.random()
    if dice < 0.5:
        content = {
            "algorithm": "m.megolm.v1.aes-sha2",
            "ciphertext": _MEGOLM,
            "device_id": f"DEV{rng.randrange(10)}",
            "sender_key": rng.randbytes(21).hex(),
            "session_id": rng.randbytes(21).hex(),
        }
        return {"type": "m.room.encrypted", "content": content}
    if dice < 0.85:
        text = " ".join(rng.choices(_WORDS, k=12))
        return {"type": "m.room.message", "content": {"body": text, "m.mentions": {}, "msgtype": "m.text"}}
    if dice < 0.95:
        related = {"event_id": f"${rng.randbytes(20).hex()}", "key": "+1", "rel_type": "m.annotation"}
        return {"type": "m.reaction", "content": {"m.relates_to": related}}
    return {
        "type": "m.room.member",
        "state_key": sender,
        "content": {"displayname": "Somebody", "membership": "join"},
        "unsigned": {"prev_content": {"membership": "invite"}, "replaces_state": f"${rng.randbytes(20).hex()}"},
    }


def lanes(load: Load, count: int, started_ms: int) -> Iterator[Batch]:
    """Make the transactions of all homeservers, `count` in all."""
    for lane in range(load.homeservers):
        yield prepare(load, lane, max(1, count // load.homeservers), started_ms)
