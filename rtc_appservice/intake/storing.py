"""Stage 1: storing a transaction of which the database refuses a part: all but that part is committed."""

import logging
from collections.abc import Sequence

from msgspec.structs import replace

from rtc_appservice.core.observed import HeldEnvelope, Observation, Rejected
from rtc_appservice.core.wire import Intake
from rtc_appservice.errors import DataRefused
from rtc_appservice.intake.faults import describe
from rtc_appservice.store.observations import Recorded, kind_of, record
from rtc_appservice.store.pool import Connection, store_errors
from rtc_appservice.store.rooms import RoomCache

_log = logging.getLogger("rtc_appservice.intake")


async def record_what_can_be(conn: Connection, homeserver_id: int, intake: Intake, rooms: RoomCache) -> Recorded:
    """
    Write what a transaction brought, less what the database refuses for its data, and give how much was new.

    Answering 503 would bring the same data again and again. The reader keeps out what PostgreSQL cannot hold; were
    there more of it, the observation at fault is recorded as rejected, or dropped if that is refused too.
    """
    writer = _Writer(conn, homeserver_id, intake, rooms)
    try:
        if conn.is_in_transaction():
            return await writer.write_held(intake)
        with store_errors():
            return await record(conn, homeserver_id, intake, rooms)
    except DataRefused as error:
        _log.error("the database refused data of a transaction, which is stored in parts", extra=describe(error))
    async with conn.transaction():
        return await writer.write([*intake.observations, *intake.envelopes])


class _Writer:
    """Writes parts of one transaction, inside a transaction of the database."""

    def __init__(self, conn: Connection, homeserver_id: int, whole: Intake, rooms: RoomCache) -> None:
        self._conn = conn
        self._homeserver_id = homeserver_id
        self._whole = whole
        self._rooms = rooms

    async def write_held(self, intake: Intake) -> Recorded:
        """Write all of it or, with DataRefused, nothing; the transaction around it stays usable."""
        with store_errors():
            async with self._conn.transaction():
                return await record(self._conn, self._homeserver_id, intake, self._rooms)

    async def write(self, items: Sequence[Observation | HeldEnvelope]) -> Recorded:
        """Write all of them or, if that is refused, each half by itself."""
        try:
            return await self.write_held(self._part(items))
        except DataRefused as error:
            refused = error
        if len(items) > 1:
            middle = len(items) // 2
            first, second = await self.write(items[:middle]), await self.write(items[middle:])
            return Recorded(first.new + second.new, first.duplicates + second.duplicates)
        return await self._reject(items, refused)

    async def _reject(self, items: Sequence[Observation | HeldEnvelope], refused: DataRefused) -> Recorded:
        for item in items:
            if isinstance(item, Observation) and not isinstance(item.body, Rejected):
                kind = kind_of(item.body)
                body = Rejected(
                    sender=item.body.sender, event_type=getattr(item.body, "event_type", kind), reason="malformed"
                )
                return await self.write([replace(item, event_at=item.received_at, body=body)])
            _log.error("what the database refused was dropped", extra=describe(refused))
        return Recorded(0, 0)

    def _part(self, items: Sequence[Observation | HeldEnvelope]) -> Intake:
        observations = [item for item in items if isinstance(item, Observation)]
        return Intake(
            observations=observations,
            envelopes=[item for item in items if isinstance(item, HeldEnvelope)],
            newest_at=self._whole.newest_at,
            rtc_rooms=self._whole.rtc_rooms & {observation.room_id for observation in observations},
        )
