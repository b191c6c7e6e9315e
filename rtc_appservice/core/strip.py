"""
Stage 2: raw JSON in, raw JSON without key material out.

A key event is rebuilt from an allow-list: what is not named here does not leave this module. Where a
media key stood, a dict with its length, base64 form and comparison tag stands; strings that are kept and
happen to repeat a key of the same event, in any usual encoding, are blanked.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterator
from typing import Any

#: Room and to-device events that carry media keys (js-sdk; MSC4143 stable and unstable; famedly's fork).
KEY_EVENT_TYPES = frozenset(
    {
        "io.element.call.encryption_keys",
        "m.rtc.encryption_key",
        "org.matrix.msc4143.rtc.encryption_key",
        "com.famedly.call.encryption_keys",
    }
)

#: What stands where a string repeated a media key.
STRIPPED = "[stripped]"
#: A kept text of so many characters that is a part of a key is blanked as well.
SHORTEST_PART = 12

#: A given key's bytes -> comparison tag, or None where tags are off.
Tagger = Callable[[bytes], str | None]

_ENVELOPE_FIELDS = ("type", "sender", "event_id", "room_id", "origin_server_ts", "to_user_id", "to_device_id")
_CONTENT_FIELDS = ("call_id", "device_id", "room_id", "sent_ts", "member_id", "slot_id", "party_id", "conf_id")
_CONTENT_OBJECTS = {"member": ("claimed_device_id", "id"), "session": ("call_id", "application", "scope")}


def comparison_tag(secret: bytes, room_id: str, key: bytes) -> str:
    """Give the 16 hex digits by which equal media keys of one room can be recognised, and nothing else."""
    return hmac.new(
        secret, b"tag\0" + room_id.encode(errors="surrogatepass") + b"\0" + key, hashlib.sha256
    ).hexdigest()[:16]


def strip_key_event(event: dict[str, Any], tagger: Tagger) -> dict[str, Any]:
    """
    Rebuild a key event without its media keys.

    `content.keys` becomes a list (room form) or one (to-device form) of `{"index", "mark"}`, as does
    `content.media_key`; `mark` is `{"length", "padded", "tag"}`, or None where no key text stood.
    """
    content = event.get("content")
    stripped: dict[str, Any] = {name: event[name] for name in _ENVELOPE_FIELDS if _is_scalar(event.get(name))}
    if not isinstance(content, dict):
        return stripped
    kept: dict[str, Any] = {name: content[name] for name in _CONTENT_FIELDS if _is_scalar(content.get(name))}
    for name, inner in _CONTENT_OBJECTS.items():
        if isinstance(content.get(name), dict):
            kept[name] = {key: content[name][key] for key in inner if _is_scalar(content[name].get(key))}
    secrets = set(_forms(content))
    stripped = _blank(stripped | {"content": kept}, secrets)
    for name in ("keys", "media_key"):
        if name in content:
            stripped["content"][name] = _mark_entries(content[name], tagger)
    return stripped


def _mark_entries(value: Any, tagger: Tagger) -> Any:
    if isinstance(value, list):
        return [_mark_entry(entry, tagger) for entry in value]
    return _mark_entry(value, tagger)


def _mark_entry(entry: Any, tagger: Tagger) -> dict[str, Any] | None:
    if not isinstance(entry, dict):
        return None
    index = entry.get("index")
    text = entry.get("key")
    is_index = isinstance(index, int) and not isinstance(index, bool)
    return {"index": index if is_index else None, "mark": _mark(text, tagger) if isinstance(text, str) else None}


def _mark(text: str, tagger: Tagger) -> dict[str, Any]:
    raw = decode_key(text)
    if raw is None:
        return {"length": None, "padded": None, "tag": None}
    return {"length": len(raw), "padded": text.endswith("="), "tag": tagger(raw)}


def decode_key(text: str) -> bytes | None:
    """Decode base64 in any flavour (padded or not, URL-safe or not), or give None."""
    plain = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None


def _forms(content: dict[str, Any]) -> Iterator[str]:
    """Yield every text in which a key of this content could be repeated elsewhere in it."""
    for name in ("keys", "media_key"):
        for text in _strings(content.get(name)):
            raw = decode_key(text) or text.encode(errors="surrogatepass")
            if len(raw) < 8:  # too short to be a key, and blanking it would hit ordinary words
                continue
            standard = base64.b64encode(raw).decode().rstrip("=")
            yield from (text, standard, standard.replace("+", "-").replace("/", "_"), raw.hex(), raw.hex().upper())


def _strings(value: Any) -> Iterator[str]:
    """Yield every text inside a value, however deep: JSON may nest deeper than Python recurses."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, dict):
            waiting += item.values()


def _blank(value: Any, secrets: set[str]) -> Any:
    if isinstance(value, str):
        return STRIPPED if any(s in value or (len(value) >= SHORTEST_PART and value in s) for s in secrets) else value
    if isinstance(value, dict):
        return {key: _blank(item, secrets) for key, item in value.items()}
    return value


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int | float)
