"""
The dashboards of this package, read and checked offline: nothing is asked of PostHog.

A tile of a misspelt name is not an error in PostHog but an empty graph, which looks like good news. So every event,
property and value that a query names must be one we send, and every key of it one that PostHog knows.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from rtc_appservice.errors import InputError
from rtc_appservice.export.dashboards.nodes import (
    BreakdownFilter,
    DataVisualizationNode,
    EventsNode,
    FunnelsQuery,
    NonEmpty,
    PropertyFilter,
    Query,
    TrendsQuery,
)
from rtc_appservice.export.properties import EVENTS, json_schema

FOLDER = Path(__file__).parent
#: PostHog's grid.
COLUMNS = 12
#: Longest name and description PostHog takes; a description also holds the mark that tells what is ours.
MAX_TEXT = 400

Slug = Annotated[str, Meta(pattern="^[a-z0-9]+(-[a-z0-9]+)*$")]


class Layout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where a tile stands on the grid."""

    x: Annotated[int, Meta(ge=0)]
    y: Annotated[int, Meta(ge=0)]
    w: Annotated[int, Meta(ge=1, le=COLUMNS)]
    h: Annotated[int, Meta(ge=1)]


class Tile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One insight on a dashboard."""

    slug: Slug
    name: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    description: NonEmpty
    layout: Layout
    query: Mapping[str, Any]  #: as it is sent; `check` holds it against the nodes


class Dashboard(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dashboard."""

    slug: Slug
    name: Annotated[str, Meta(min_length=1, max_length=MAX_TEXT)]
    description: NonEmpty
    tiles: list[Tile]


def mark(slug: str) -> str:
    """Give the last line of a description by which we know again what is ours: tags are ignored by some servers."""
    return f"managed-by: rtc-appservice/{slug}"


def marked(description: str, slug: str) -> str:
    """Give a description with its mark."""
    return f"{description}\n\n{mark(slug)}"


def load(folder: Path = FOLDER) -> list[Dashboard]:
    """
    Read every dashboard of a folder.

    Raises:
        InputError: if a file is not of the form of a dashboard; it names the file and the place.
    """
    dashboards = []
    for path in sorted(folder.glob("*.json")):
        try:
            dashboards.append(msgspec.json.decode(path.read_bytes(), type=Dashboard))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path.name}: {error}") from error
    return dashboards


def check(dashboards: Sequence[Dashboard]) -> list[str]:
    """Give every fault of the dashboards, each with its place; none if they can be pushed."""
    faults = [f"{slug}: two dashboards have this slug" for slug in _twice(each.slug for each in dashboards)]
    for dashboard in dashboards:
        faults += [f"{dashboard.slug}: two tiles are called {slug}" for slug in _twice(t.slug for t in dashboard.tiles)]
        faults += [f"{dashboard.slug}: {fault}" for fault in _description(dashboard.description, dashboard.slug)]
        faults += [f"{dashboard.slug}: {fault}" for fault in _overlaps(dashboard.tiles)]
        for tile in dashboard.tiles:
            name = f"{dashboard.slug}/{tile.slug}"
            faults += [
                f"{name}: {fault}" for fault in (*_description(tile.description, name), *check_query(tile.query))
            ]
    return faults


def check_query(content: Mapping[str, Any]) -> list[str]:
    """Give every fault of one query; the first only where its form is at fault."""
    try:
        node = msgspec.convert(content, Query)
    except msgspec.ValidationError as error:
        return [str(error)]
    if isinstance(node, DataVisualizationNode):
        return list(_hogql(node.source.query))
    return list(_series(node.source))


def _series(query: TrendsQuery | FunnelsQuery) -> Iterator[str]:
    for node in query.series:
        if node.event not in SENT:
            yield f"no event {node.event} is sent"
            continue
        for each in (*node.properties, *query.properties):
            yield from _filter(node.event, each)
        names = [node.math_property, *_breakdowns(query.breakdown_filter)]
        yield from (_no_property(node.event, name) for name in names if name and name not in SENT[node.event])
        yield from _expression(node)
    if isinstance(query, TrendsQuery) and query.trends_filter is not None:
        letters = set(ascii_uppercase[: len(query.series)])
        for formula in query.trends_filter.all_formulas():
            unknown = sorted(set(re.findall(r"[A-Za-z]+", formula)) - letters)
            yield from (f"formula {formula}: there is no series {letter}" for letter in unknown)


def _filter(event: str, wanted: PropertyFilter) -> Iterator[str]:
    if wanted.key not in SENT[event]:
        yield _no_property(event, wanted.key)
    elif wanted.operator in ("exact", "is_not"):
        values = wanted.value if isinstance(wanted.value, list) else [str(wanted.value)]
        yield from _values(event, wanted.key, values)


def _expression(node: EventsNode) -> Iterator[str]:
    if node.math_hogql is not None:
        yield from _properties_in([node.event], node.math_hogql)
        yield from _unbalanced(node.math_hogql)


def _hogql(query: str) -> Iterator[str]:
    events = re.findall(r"'(Rtc\w*)'", query)
    unknown = sorted(set(events) - SENT.keys())
    yield from (f"no event {event} is sent" for event in unknown)
    if not events:
        yield "the query names no event of ours"
    known = [event for event in events if event in SENT]
    yield from _properties_in(known, query)
    yield from _unbalanced(query)
    compared = re.findall(r"properties\.(\w+)\s*(?:=|!=)\s*('[^']*')", query)
    compared += re.findall(r"properties\.(\w+)\s+(?:NOT\s+)?IN\s*\(([^)]*)\)", query, re.IGNORECASE)
    for name, literals in compared:
        owners = [event for event in known if name in SENT[event]]
        for owner in owners[:1]:
            yield from _values(owner, name, re.findall(r"'([^']*)'", literals))


def _properties_in(events: Iterable[str], hogql: str) -> Iterator[str]:
    events = sorted(set(events))
    for name in sorted(set(re.findall(r"properties\.([$\w]+)", hogql))):
        if not any(name in SENT[event] for event in events):
            yield _no_property(" or ".join(events), name)


def _unbalanced(hogql: str) -> Iterator[str]:
    """Find the slips that need no parser: a string or a bracket that does not end."""
    outside, *rest = re.split(r"'[^']*'", hogql)
    text = outside + "".join(rest)
    if "'" in text:
        yield "a string does not end"
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            break
    if depth:
        yield "brackets do not match"


def _values(event: str, name: str, values: Iterable[str]) -> Iterator[str]:
    allowed = SENT[event][name]
    for value in values:
        if allowed is not None and value not in allowed:
            yield f"{event}.{name} is never {value}"


def _breakdowns(breakdown: BreakdownFilter | None) -> list[str]:
    """Give the properties a query is broken down by."""
    if breakdown is None:
        return []
    several = [each.property for each in breakdown.breakdowns or () if each.type == "event"]
    return several if breakdown.breakdown_type != "event" else [*several, breakdown.breakdown or ""]


def _no_property(event: str, name: str) -> str:
    return f"{event} has no property {name}"


def _description(description: str, slug: str) -> Iterator[str]:
    length = len(marked(description, slug))
    if length > MAX_TEXT:
        yield f"description with its mark has {length} characters, PostHog takes {MAX_TEXT}"


def _overlaps(tiles: Sequence[Tile]) -> Iterator[str]:
    for position, tile in enumerate(tiles):
        one = tile.layout
        if one.x + one.w > COLUMNS:
            yield f"{tile.slug} is wider than the grid"
        for other in tiles[:position]:
            two = other.layout
            if one.x < two.x + two.w and two.x < one.x + one.w and one.y < two.y + two.h and two.y < one.y + one.h:
                yield f"{tile.slug} lies on {other.slug}"


def _twice(slugs: Iterable[str]) -> list[str]:
    seen = list(slugs)
    return sorted({slug for slug in seen if seen.count(slug) > 1})


def _allowed(described: Mapping[str, Any], definitions: Mapping[str, Any]) -> frozenset[str] | None:
    """Give the values a property can have, as PostHog writes them; None if they cannot be listed."""
    if "anyOf" in described:
        parts = [_allowed(each, definitions) for each in described["anyOf"]]
        return None if None in parts else frozenset().union(*(part for part in parts if part is not None))
    if "$ref" in described:
        return _allowed(definitions[described["$ref"].rpartition("/")[2]], definitions)
    if "const" in described:
        return frozenset({str(described["const"]).lower()})
    if "enum" in described:
        return frozenset(str(value) for value in described["enum"])
    if described["type"] in ("boolean", "null"):
        return frozenset({"true", "false"} if described["type"] == "boolean" else ())
    return None


def _sent() -> dict[str, dict[str, frozenset[str] | None]]:
    schemas = {event.__name__: json_schema(event) for event in EVENTS}
    return {
        event: {name: _allowed(each, schema["$defs"]) for name, each in schema["properties"].items()}
        for event, schema in schemas.items()
    }


#: Every event, with its properties and the values each can have.
SENT = _sent()
