"""Creates the schema `crypto`: what the device of the service needs to read what is sent to it."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Pickles are encrypted by libolm under a key from the configuration. Nothing that was decrypted is in here. One device
# a homeserver, so every key begins with the homeserver.
TABLES = """
CREATE SCHEMA crypto;

-- The device. Its row is locked by whoever changes Olm state.
CREATE TABLE crypto.device (
    homeserver_id smallint PRIMARY KEY REFERENCES homeserver,
    user_id       text NOT NULL,
    device_id     text NOT NULL,
    account       text NOT NULL,          -- pickle
    sync_token    text,                   -- to-device messages up to here are committed
    synced_at     timestamptz,
    published_at  timestamptz,            -- device keys are on the homeserver
    signed_at     timestamptz             -- … and cross-signed
);

CREATE TABLE crypto.olm_session (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    sender_key    text NOT NULL,
    session_id    text NOT NULL,
    pickle        text NOT NULL,
    used_at       timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, sender_key, session_id)
);

CREATE TABLE crypto.megolm_session (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    room_id       text NOT NULL,
    session_id    text NOT NULL,
    owner         text NOT NULL,
    sender_key    text NOT NULL,
    device_id     text,
    trust         text NOT NULL,
    first_index   bigint NOT NULL,        -- events before this one cannot be opened
    pickle        text NOT NULL,
    received_at   timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, room_id, session_id)
);

-- Which event used an index of a Megolm session: another one that does is a replay.
CREATE TABLE crypto.megolm_index (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    session_id    text NOT NULL,
    index         bigint NOT NULL,
    event_id      text NOT NULL,
    noted_at      timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, session_id, index)
);

-- Hashes of ciphertexts that were opened: what comes by both transaction and /sync is opened once.
CREATE TABLE crypto.taken_message (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    message_id    text NOT NULL,
    taken_at      timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, message_id)
);

-- Events that could not be opened, by id only: fetched again when their session comes.
CREATE TABLE crypto.unread_event (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    event_id      text NOT NULL,
    room_id       text NOT NULL,
    session_id    text NOT NULL,
    event_at      timestamptz,
    reason        text NOT NULL,
    withheld_code text,
    noted_at      timestamptz NOT NULL,
    PRIMARY KEY (homeserver_id, event_id)
);
CREATE INDEX unread_event_session ON crypto.unread_event (homeserver_id, room_id, session_id);

-- Rooms the device is to be in, or is in.
CREATE TABLE crypto.room (
    homeserver_id smallint NOT NULL REFERENCES homeserver,
    room_id       text NOT NULL,
    wanted        boolean NOT NULL,       -- join, or leave
    joined_at     timestamptz,
    announced_at  timestamptz,
    witness       boolean NOT NULL DEFAULT false,  -- take part in calls
    PRIMARY KEY (homeserver_id, room_id)
);
"""


def upgrade() -> None:
    """Create the schema and its tables."""
    for statement in TABLES.split(";\n"):
        if statement.strip():
            op.execute(statement)
