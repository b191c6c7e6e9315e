"""The intake with a device of the service's own, to which real peers send; without a homeserver."""

from collections.abc import Collection, Mapping
from typing import Any

import orjson

from rtc_appservice.core.wire import Intake, TransactionReader
from rtc_appservice.core.words import DeviceId, EventId, RoomId, UserId
from rtc_appservice.intake.decrypt import Reading
from rtc_appservice.intake.device_keys import Identity
from rtc_appservice.intake.own_device import OwnDevice
from rtc_appservice.intake.sealed import Invitations, SealedIntake
from rtc_appservice.intake.transaction import TransactionIntake
from rtc_appservice.store import crypto, totals
from rtc_appservice.store.pool import Connection, Pool

from .olm_peer import OURS, ROOM, Peer, our_keyring
from .serving import HOMESERVER, Clock

SECRET = b"a secret of the test"


class ReadingDevice:
    """The intake, its device, and Alice, who sends to it."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        """Take the database, and a clock that the test holds."""
        self.pool, self.clock = pool, clock
        self.keys = our_keyring()
        self.alice = Peer(self.keys)

    async def start(self) -> None:
        """Start as the service does: what is not in the database is forgotten."""
        self.intake = TransactionIntake(self.pool, HOMESERVER, TransactionReader(HOMESERVER, SECRET), clock=self.clock)
        await self.intake.open()
        own = OwnDevice(HOMESERVER, self.intake.homeserver_id, OURS, SECRET)
        async with self.pool.acquire() as conn, conn.transaction():
            account = own.pickle(self.keys.account)
            await crypto.add_device(conn, self.intake.homeserver_id, UserId(OURS[0]), DeviceId(OURS[1]), account)
        own.identity_key = self.keys.identity_key
        self.own = own
        own.rooms = {RoomId(ROOM)}
        self.intake.sealed = SealedIntake(self.intake.homeserver_id, own, Invitations([]), nothing_known)

    async def take(self, sent: dict[str, Any]) -> None:
        """Take a transaction, and the same once more: the answer to the first was lost."""
        for _ in range(2):

            async def read() -> bytes:
                return orjson.dumps(sent)

            await self.intake.take(read)

    async def read_again(self, *events: dict[str, Any]) -> None:
        """Read events again as the device does when their session has come."""

        async def write(conn: Connection, _reading: Reading, _intake: Intake) -> None:
            for event in events:
                await crypto.drop_unread(conn, self.intake.homeserver_id, EventId(event["event_id"]))
                await crypto.drop_sealed_observation(conn, self.intake.homeserver_id, EventId(event["event_id"]))

        await self.intake.take_beside({"events": list(events)}, write)

    async def totals(self) -> dict[str, int]:
        """Give the totals, under name and label value."""
        async with self.pool.acquire() as conn:
            return {" ".join((t.name, *t.labels.values())): t.value for t in await totals.load(conn)}

    async def waiting(self) -> dict[str, int]:
        """Give how many events wait, by why."""
        async with self.pool.acquire() as conn:
            return await crypto.count_unread(conn, self.intake.homeserver_id)


async def nothing_known(_users: Collection[UserId]) -> Mapping[UserId, Identity]:
    """Say nothing of users."""
    return {}
