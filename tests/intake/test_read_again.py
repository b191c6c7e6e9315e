"""Events that wait for their session are fetched from the homeserver, whatever it answers to some of them."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from mautrix.errors import MatrixRequestError

from rtc_appservice.core.undecryptable import UndecryptableReason
from rtc_appservice.core.words import DeviceTrust, EventId, RoomId, UserId
from rtc_appservice.intake.auditor import Auditor, auditor_terms
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.store import crypto
from rtc_appservice.store.crypto import MegolmRow
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.undecryptable import UnreadRow, note_unread

from .olm_peer import ROOM
from .serving import HOMESERVER, Clock

BROKEN, GONE = EventId("$1broken"), EventId("$2gone")


async def _answer(request: web.Request) -> web.Response:
    """Fail at one event, and know nothing of any other."""
    status = 500 if request.path.endswith(BROKEN) else 404
    return web.json_response({"errcode": "M_UNKNOWN"}, status=status)


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """Give the address of a homeserver."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_one_that_fails_does_not_hold_the_others_up(
    pool: Pool, intake: TransactionIntake, clock: Clock, address: str
) -> None:
    """What comes after it is read, or given up if gone; it itself is tried again, with no other session coming."""
    terms = auditor_terms(
        address=address, as_token="as", sender_localpart="rtc", homeserver=HOMESERVER, secret=b"a secret of the test"
    )
    auditor, number = Auditor(pool, HOMESERVER, intake, terms, clock=clock), intake.homeserver_id
    async with aiohttp.ClientSession() as session:
        await auditor.open(session)
        async with pool.acquire() as conn:
            events = [
                UnreadRow(
                    event_id=event_id,
                    room_id=RoomId(ROOM),
                    session_id="s",
                    sender=UserId("@alice:lab.test"),
                    event_at=None,
                    reason=UndecryptableReason.MISSING_SESSION,
                )
                for event_id in (BROKEN, GONE)
            ]
            await note_unread(conn, number, events, clock())
            row = MegolmRow(
                room_id=RoomId(ROOM),
                session_id="s",
                owner=UserId("@alice:lab.test"),
                sender_key="k",
                device_id=None,
                trust=DeviceTrust.UNKNOWN,
                first_index=0,
                pickle="",
            )
            await crypto.save_megolm_sessions(conn, number, [row], clock())
        for _ in range(2):
            with pytest.raises(MatrixRequestError):
                await auditor._read_again()
            async with pool.acquire() as conn:
                waiting = await crypto.readable_now(conn, number, 10)
            assert [BROKEN] == [one.event_id for one in waiting]
