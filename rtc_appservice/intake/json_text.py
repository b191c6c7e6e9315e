"""Stage 1: JSON of the homeserver, which may hold what a client sent: parsed whatever it is, by orjson where it can."""

import json
import re
from typing import Any

import aiohttp
import orjson

#: Well below what Python 3.11 recurses (1,000 calls, of which the server takes some), well above any event's form.
MAX_DEPTH = 200
_STRING_OR_BRACKET = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{}]', re.DOTALL)


def parse_json(raw: bytes, *, surrogates: bool = False) -> Any:
    """
    Parse JSON; raises ValueError where it is none.

    What orjson refuses is given to the standard library: Synapse takes integers of any length from clients (in
    rooms of versions 1 to 5 and in to-device messages) and, on newer Pythons, nesting deeper than orjson's limit.
    Refusing such a transaction or `/sync` would stop the homeserver's queue there for ever. Nesting deeper than our
    own Python takes is cut: nothing that is read stands so deep. Lone surrogates are refused unless asked for.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:
        value = json.loads(_cut_deep(raw), parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError from None
    if not surrogates and not is_text(value):
        raise ValueError
    return value


def is_text(value: Any) -> bool:
    """Tell whether parsed JSON is text throughout: a lone surrogate is none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return True


def _cut_deep(raw: bytes) -> bytes:
    """Give JSON without what is nested deeper than `MAX_DEPTH`: there stands null."""
    kept: list[bytes] = []
    depth = start = 0
    for token in _STRING_OR_BRACKET.finditer(raw):
        if raw[token.start()] in b"[{":
            depth += 1
            if depth == MAX_DEPTH + 1:
                kept += raw[start : token.start()], b"null"
        elif raw[token.start()] in b"]}":
            if depth == MAX_DEPTH + 1:
                start = token.end()
            depth -= 1
    if depth > MAX_DEPTH:
        return b""  # it ends in there
    return b"".join((*kept, raw[start:])) if kept else raw


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


class JsonAnswer(aiohttp.ClientResponse):
    """An answer whose JSON mautrix takes whatever it is, or fails at as a request fails."""

    async def json(self, *_: Any, **__: Any) -> Any:
        """Give the parsed body, of an error the texts in it; raises aiohttp.ClientPayloadError where it is no JSON."""
        raw = await self.read()
        try:
            answer = parse_json(raw, surrogates=True)
        except ValueError:
            answer = None
            if self.ok:
                raise aiohttp.ClientPayloadError("not JSON") from None
        if self.ok:
            return answer
        return {name: one for name, one in answer.items() if isinstance(one, str)} if isinstance(answer, dict) else {}

    async def text(self, encoding: str | None = None, errors: str = "replace") -> str:
        """Give the body as text, the page of a proxy in whatever encoding too."""
        return await super().text(encoding, errors)
