"""Whatever a homeserver answers, and whatever others had it hand on, is data or a failed request."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from olm.pk import PkSigning

from rtc_appservice.core.words import DeviceId, DeviceTrust, EventId, RoomId, UserId
from rtc_appservice.intake.call_api import CallApi
from rtc_appservice.intake.call_form import CallForm, sticky_membership
from rtc_appservice.intake.cross_signing import is_cross_signed
from rtc_appservice.intake.device_api import DeviceApi, RequestFailed
from rtc_appservice.intake.device_keys import Identity, identity_of, sealed_by
from rtc_appservice.intake.identities import Identities
from rtc_appservice.intake.json_text import MAX_DEPTH

from .olm_peer import OURS, Peer, our_keyring
from .serving import answering, taking_nothing

ALICE = UserId("@alice:lab.test")
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
KEY = "A" * 43

_names = st.sampled_from(
    ["user_id", "device_id", "keys", "signatures", "ed25519:A", f"ed25519:{KEY}", "curve25519:A", ALICE, "A", KEY]
)
_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from([KEY, ALICE, "A", "\ud800", "é"])
)
_json: Any = st.recursive(
    _values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_names | st.text(), inner, max_size=4)
)
#: As a cross-signing key or a device looks, with anything in the places that are looked at.
_signed: Any = st.fixed_dictionaries(
    {},
    optional={
        "keys": _json | st.dictionaries(_names, _values, max_size=3),
        "signatures": _json | st.dictionaries(_names, st.dictionaries(_names, _values, max_size=3), max_size=2),
        "user_id": _values,
        "device_id": _values,
        "unsigned": _json,
        "more": _json,
    },
)
_answers: Any = _json | st.fixed_dictionaries(
    {},
    optional={
        "device_keys": _json | st.fixed_dictionaries({ALICE: _json | st.dictionaries(_names, _signed, max_size=2)}),
        "master_keys": _json | st.fixed_dictionaries({ALICE: _signed}),
        "self_signing_keys": _json | st.fixed_dictionaries({ALICE: _signed}),
    },
)


@given(answer=_answers, plaintext=st.dictionaries(_names | st.just("sender_device_keys"), _signed | _json, max_size=4))
def test_any_answer_is_an_identity(answer: Any, plaintext: dict[str, Any]) -> None:
    """Nothing is proven by what is none."""
    identity = identity_of(ALICE, answer)
    found = sealed_by(plaintext, ALICE, KEY, identity)
    is_cross_signed(ALICE, DeviceId("A"), answer)

    assert found.trust is not DeviceTrust.CROSS_SIGNED


def nested(depth: int) -> Any:
    """Give lists in lists."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@pytest.mark.parametrize(
    "more",
    [nested(100_000), "\ud800", 10**5000, {1: 2, "a": 3}],
    ids=["deep", "surrogate", "long", "mixed"],
)
def test_signed_parts_that_cannot_be_written_as_json(more: Any) -> None:
    """Whoever signs what nobody can check has signed nothing; a device that sends such keys along is not proven."""
    peer = Peer(our_keyring())
    master, signing = (PkSigning(PkSigning.generate_seed()) for _ in range(2))
    keys = peer.device_keys(signing)
    answer = {
        "master_keys": {peer.user: {"keys": {"ed25519:m": master.public_key}}},
        "self_signing_keys": {
            peer.user: {
                "keys": {"ed25519:s": signing.public_key},
                "signatures": {peer.user: {f"ed25519:{master.public_key}": "A" * 86}},
                "more": more,
            }
        },
    }
    plaintext = {"keys": {"ed25519": peer.account.identity_keys["ed25519"]}, "sender_device_keys": keys}

    assert identity_of(UserId(peer.user), answer) == Identity()
    assert sealed_by(plaintext, UserId(peer.user), peer.identity_key).trust is DeviceTrust.SIGNED_UNCHECKED
    keys["more"] = more
    assert sealed_by(plaintext, UserId(peer.user), peer.identity_key).trust is DeviceTrust.INVALID


class Homeserver:
    """Answers whatever it is told to."""

    def __init__(self) -> None:
        self.status = 200
        self.body = b"{}"
        self.address = ""
        self.requests = 0

    async def answer(self, _request: web.Request) -> web.Response:
        """Answer."""
        self.requests += 1
        return web.Response(body=self.body, status=self.status, content_type="application/json")


@pytest.fixture
async def homeserver() -> AsyncIterator[Homeserver]:
    """Give a listening HTTP server."""
    given = Homeserver()
    async with answering(given.answer) as given.address:
        yield given


@pytest.fixture
async def api(homeserver: Homeserver) -> AsyncIterator[DeviceApi]:
    """Give the device's requests, sent as the service sends them."""
    session: aiohttp.ClientSession = taking_nothing(homeserver.address, [OURS[0]]).open_client()
    yield DeviceApi(homeserver.address, "as", session, OURS)
    await session.close()


ODD = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"7",
    b"\xff",
    b'{"a": NaN}',
    b'{"a": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"errcode": ["M_FORBIDDEN"], "error": {}, "device_keys": 1, "one_time_key_counts": []}',
]


@pytest.mark.parametrize("status", [200, 400, 502])
@pytest.mark.parametrize("body", ODD)
async def test_odd_answers_are_failed_requests(
    homeserver: Homeserver, api: DeviceApi, status: int, body: bytes
) -> None:
    """Every request fails as requests fail, or gives what little there is."""
    homeserver.status, homeserver.body = status, body

    calls, room = CallApi(api.client.api), RoomId("!r")
    mine = sticky_membership(OURS, CallForm("m.call#ROOM", "js_43"), "id")
    for request in (
        api.query_keys([ALICE]),
        api.upload_keys({}),
        api.sync(None),
        api.event(room, EventId("$e")),
        api.state(room),
        api.join("!r"),
        api.say(room, "text", "occasion"),
        api.register(),
        calls.send(room, mine, mine.content, delay_ms=8000),
        calls.content_of(room, "kind", "key"),
        calls.put_off("id"),
    ):
        try:
            await request
        except RequestFailed:
            continue
    known = await Identities(api).learn([ALICE], NOON)

    assert known in ({}, {ALICE: Identity()})


async def test_who_cannot_be_asked_about_is_not_asked_about_each_time(homeserver: Homeserver, api: DeviceApi) -> None:
    """A transaction waits for the answer: one sender whose server does not answer would slow every one of theirs."""
    identities = Identities(api)
    homeserver.status = 502
    first, again = await identities.learn([ALICE], NOON), await identities.learn([ALICE], NOON)
    asked = homeserver.requests
    homeserver.status = 200
    answered = await identities.learn([ALICE], NOON + timedelta(minutes=2))
    homeserver.status = 502
    later = await identities.learn([ALICE], NOON + timedelta(minutes=20))

    assert ({}, {}, 1) == (first, again, asked)
    assert {ALICE: Identity()} == answered == later
    assert 3 == homeserver.requests


async def test_what_is_nested_deep_does_not_stop_the_sync(homeserver: Homeserver, api: DeviceApi) -> None:
    """Synapse hands on what its own Python takes, a hundred times deeper than ours; the rest of the answer is read."""
    deep = json.dumps({"next_batch": "s1", "to_device": {"events": [{"content": "<>"}, {"content": 1}]}})
    homeserver.body = deep.replace('"<>"', "[" * 50_000 + "]" * 50_000).encode()

    answer = await api.sync(None)

    assert "s1" == answer["next_batch"]
    assert {"content": 1} == answer["to_device"]["events"][1]
    assert MAX_DEPTH < 1000
