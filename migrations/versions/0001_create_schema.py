"""Creates every table of the first release."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Large tables carry the room's surrogate first in their primary key and are partitioned by event time, one level
# deep, so that retention is a dropped partition and each could be distributed by room. Reference tables hold no
# foreign key to them. Times are parameters: no default, no trigger, no volatile function.
TABLES = """
-- One row a homeserver; small, read by everything.
CREATE TABLE homeserver (
    homeserver_id smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text NOT NULL UNIQUE
);

-- Where each homeserver's stream stands. Written with every transaction, so apart from `homeserver`.
CREATE TABLE stream (
    homeserver_id       smallint PRIMARY KEY REFERENCES homeserver,
    watermark_at        timestamptz,
    last_transaction_at timestamptz,
    last_heartbeat_at   timestamptz
) WITH (fillfactor = 50);

CREATE TABLE room (
    room_key      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    room_id       text NOT NULL,
    rtc_seen_at   timestamptz,           -- first RTC event: watched from then on
    watched_since timestamptz NOT NULL,  -- first event of the room that was seen at all
    UNIQUE (homeserver_id, room_id)
);
CREATE INDEX room_rtc_seen ON room (homeserver_id) WHERE rtc_seen_at IS NOT NULL;

-- The projector's hold on a room: a row to lock that intake never touches, and when to look again without news.
CREATE TABLE projection (
    room_key      bigint PRIMARY KEY,
    homeserver_id smallint NOT NULL,
    due_at        timestamptz
);
CREATE INDEX projection_due ON projection (homeserver_id, due_at) WHERE due_at IS NOT NULL;

-- Marks of rooms with news: one row a room and transaction, only ever inserted by intake, so that intake never
-- waits for a projection.
CREATE TABLE dirty_room (
    room_key      bigint NOT NULL,
    mark          bigint GENERATED ALWAYS AS IDENTITY,
    homeserver_id smallint NOT NULL,
    event_at      timestamptz NOT NULL,
    PRIMARY KEY (room_key, mark)
);

-- What has been taken: duplicates are decided here, not on a key that depends on time.
CREATE TABLE observation_identity (
    homeserver_id smallint NOT NULL,
    identity      text NOT NULL,
    event_at      timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, identity)
);
CREATE INDEX observation_identity_event_at ON observation_identity USING brin (event_at);

CREATE TABLE observation (
    room_key      bigint NOT NULL,
    event_at      timestamptz NOT NULL,
    identity      text NOT NULL,
    homeserver_id smallint NOT NULL,
    kind          text NOT NULL,
    received_at   timestamptz NOT NULL,
    late          boolean NOT NULL,
    body          jsonb NOT NULL,
    PRIMARY KEY (room_key, event_at, identity)
) PARTITION BY RANGE (event_at);
CREATE TABLE observation_default PARTITION OF observation DEFAULT;
-- A call long after its room was made still needs the room's state.
CREATE INDEX observation_room_state ON observation (room_key, event_at) WHERE kind = 'room_state';

-- Olm envelopes that wait, at most two minutes, to be placed in a room or deleted.
CREATE TABLE held_envelope (
    homeserver_id    smallint NOT NULL,
    identity         text NOT NULL,
    received_at      timestamptz NOT NULL,
    sender           text NOT NULL,
    recipient        text NOT NULL,
    recipient_device text NOT NULL,
    body             jsonb NOT NULL,
    PRIMARY KEY (homeserver_id, identity)
);
CREATE INDEX held_envelope_recipient ON held_envelope (homeserver_id, recipient, recipient_device);
CREATE INDEX held_envelope_received_at ON held_envelope (homeserver_id, received_at);

-- What is known not to have been seen; no room means the whole homeserver.
CREATE TABLE gap (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    gap_id        text NOT NULL,
    reason        text NOT NULL,
    started_at    timestamptz,
    ended_at      timestamptz,
    room_key      bigint,
    PRIMARY KEY (homeserver_id, gap_id)
);

CREATE TABLE call_session (
    room_key      bigint NOT NULL,
    started_at    timestamptz NOT NULL,
    call_id       text NOT NULL,
    homeserver_id smallint NOT NULL,
    slot_id       text NOT NULL,
    ended_at      timestamptz,
    verdict       text NOT NULL,
    evidence      text NOT NULL,
    settled       boolean NOT NULL,  -- once true, true: the call has been counted and exported
    report        jsonb NOT NULL,
    PRIMARY KEY (room_key, started_at, call_id)
) PARTITION BY RANGE (started_at);
CREATE TABLE call_session_default PARTITION OF call_session DEFAULT;
CREATE INDEX call_session_started_at ON call_session (homeserver_id, started_at);
CREATE INDEX call_session_live ON call_session (homeserver_id) WHERE ended_at IS NULL;

-- Stints of recent calls: what placing an envelope asks for.
CREATE TABLE stint (
    room_key      bigint NOT NULL,
    call_id       text NOT NULL,
    user_id       text NOT NULL,
    device_id     text NOT NULL,
    joined_at     timestamptz NOT NULL,
    homeserver_id smallint NOT NULL,
    slot_id       text NOT NULL,
    left_at       timestamptz,
    PRIMARY KEY (room_key, call_id, user_id, device_id, joined_at)
);
CREATE INDEX stint_device ON stint (homeserver_id, user_id, device_id);

-- Devices seen to distribute by to-device, with the first time in each call.
CREATE TABLE to_device_history (
    homeserver_id smallint NOT NULL,
    user_id       text NOT NULL,
    device_id     text NOT NULL,
    call_id       text NOT NULL,
    at            timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, user_id, device_id, call_id)
);

CREATE TABLE finding (
    room_key      bigint NOT NULL,
    at            timestamptz NOT NULL,
    finding_id    uuid NOT NULL,
    homeserver_id smallint NOT NULL,
    call_id       text NOT NULL,
    kind          text NOT NULL,
    state         text NOT NULL CHECK (state IN ('open', 'settled')),
    body          jsonb NOT NULL,  -- once settled, as it was exported
    revision      jsonb,           -- what is known now, where that differs from a settled body
    PRIMARY KEY (room_key, at, finding_id)
) PARTITION BY RANGE (at);
CREATE TABLE finding_default PARTITION OF finding DEFAULT;
CREATE INDEX finding_identity ON finding (room_key, finding_id);

-- Room key events that stand in room history.
CREATE TABLE history_ledger (
    room_key      bigint NOT NULL,
    event_id      text NOT NULL,
    homeserver_id smallint NOT NULL,
    at            timestamptz NOT NULL,
    sender        text NOT NULL,
    device_id     text NOT NULL,
    keys          integer NOT NULL,
    redacted_at   timestamptz,
    PRIMARY KEY (room_key, event_id)
);
CREATE INDEX history_ledger_standing ON history_ledger (homeserver_id) WHERE redacted_at IS NULL;

-- Events that wait to be sent. One table on one node: it is leased from, never partitioned.
CREATE TABLE outbox (
    uuid            uuid PRIMARY KEY,
    event           text NOT NULL,
    distinct_id     text NOT NULL,
    timestamp       timestamptz NOT NULL,
    properties      jsonb NOT NULL,
    state           text NOT NULL CHECK (state IN ('pending', 'dead')),
    attempts        integer NOT NULL,
    next_attempt_at timestamptz NOT NULL
);
CREATE INDEX outbox_next_attempt_at ON outbox (next_attempt_at) WHERE state = 'pending';

-- Totals that only grow, written with the finding or call they count.
CREATE TABLE rollup (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    name          text NOT NULL,
    labels        jsonb NOT NULL,
    value         bigint NOT NULL,
    PRIMARY KEY (homeserver_id, name, labels)
);
"""


def upgrade() -> None:
    """Create the tables, their default partitions and their indexes."""
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
