"""
Stage 6: writes what the code says about its events and metrics: `schemas/*.json`, `docs/events.md`, `docs/metrics.md`.

Run as `python -m rtc_appservice.export.docs` in the repository. A test fails while the files differ.
"""

import json
from pathlib import Path
from typing import Any

from rtc_appservice.export.prometheus import DESCRIPTIONS
from rtc_appservice.export.properties import EVENTS, Common, json_schema

SCHEMAS = Path(__file__).parent / "schemas"
REPOSITORY = Path(__file__).parents[2]

_EVENTS_INTRO = """\
# PostHog events

Written by `python -m rtc_appservice.export.docs`; do not edit.

Each event is anonymous and closed: it has these properties, always all of them, and no others
(`rtc_appservice/export/schemas/`). Its `distinct_id` is the pseudonym of one call, so "unique users" in PostHog
means unique calls and funnels work per call. Rooms, users and devices appear as keyed pseudonyms only; no event
id, no address and nothing of a media key leaves the deployment. Events are sent at least once, always with
the same `uuid`, `timestamp` and `distinct_id`: count with `uniq(uuid)` where a count must be exact.

With `posthog.pseudonym_rotation_days` the pseudonyms of rooms, users and devices hold for that many days, counted
from 1970-01-01 UTC, and are another's after it. A call belongs to the period it started in, with all its events.
With `posthog.sample_rate` below 1 the `RtcKeyDistributed` events of that share of the calls are sent, all of a call
or none; which calls is decided by a keyed hash of the call, the same on every replica. No other event is sampled.
`isSampled` of `RtcCallEnded` says whether those of the call are sent.

Findings are exported once nothing still due can change them. Beyond 1,000 findings in one room and day the rest are
counted in one finding and are not sent one by one. Findings of a room that belong to no call, such as a key from
somebody while no call goes on, are not sent: nobody fell back, and every event here is of a call. A value that its
description here does not allow is not sent: the event is dropped and logged by name, and nothing else is lost. An
`RtcKeyUndecryptable` event asks for a device of the service's own: in a room without one nothing could have been
opened.

`rtc-appservice posthog push` puts two dashboards for these events into a PostHog project. `rtc-appservice about USER`
tells under which pseudonyms PostHog may know a user, as long as the user is not forgotten here
(`rtc-appservice forget`).

Element Call's own `roomEventEncryptionKeys…` properties count to-device keys with current clients, in spite of
their name; they say nothing about fallbacks.
"""

_METRICS_INTRO = """\
# Metrics

Written by `python -m rtc_appservice.export.docs`; do not edit.

Totals come from the database, where each was added together with what it counts: a restart, a second replica,
retention or a replay changes none. Totals of calls, media keys owed or handed out, and findings are split by
`evidence`: `direct`, `decrypted`, `inferred` or `reported`. What the service's own device could and could not open
counts once, however often it comes: the share it cannot read is what it could not open, less what it opened `later`,
of that and what it opened `at_once`. `homeserver` is the operator's own. While the database cannot be reached, what is
read from it is missing from the page rather than stale, and `rtc_appservice_database_up` is 0. The rest belongs to the
process and starts at 0 with it.
"""


def files() -> dict[Path, str]:
    """Give every generated file with its content."""
    made = {
        SCHEMAS / f"{event.__name__}.json": json.dumps(json_schema(event), indent=2, ensure_ascii=False) + "\n"
        for event in EVENTS
    }
    made[REPOSITORY / "docs" / "events.md"] = _EVENTS_INTRO + "".join(_event(event) for event in EVENTS)
    made[REPOSITORY / "docs" / "metrics.md"] = _METRICS_INTRO + _metrics()
    return made


def _event(event: type[Common]) -> str:
    schema = json_schema(event)
    lines = [
        f"\n## {event.__name__}\n",
        f"{schema['description']}\n",
        "| property | values | meaning |",
        "| --- | --- | --- |",
    ]
    for name, described in schema["properties"].items():
        lines.append(f"| `{name}` | {_values(described, schema['$defs'])} | {described.get('description', '')} |")
    return "\n".join(lines) + "\n"


def _values(described: dict[str, Any], definitions: dict[str, Any]) -> str:
    if "anyOf" in described:
        return " or ".join(_values(each, definitions) for each in described["anyOf"])
    if "$ref" in described:
        return _values(definitions[described["$ref"].rpartition("/")[2]], definitions)
    if "const" in described:
        return f"`{json.dumps(described['const'])}`"
    if "enum" in described:
        return ", ".join(f"`{value}`" for value in described["enum"])
    if described["type"] == "array":
        return "list of " + _values(described["items"], definitions)
    return str(described["type"])


def _metrics() -> str:
    lines = ["\n| metric | type | labels | meaning |", "| --- | --- | --- | --- |"]
    for metric in DESCRIPTIONS:
        labels = "; ".join(
            f"`{name}`" + (f" = {', '.join(f'`{value}`' for value in values)}" if values else "")
            for name, values in metric.labels.items()
        )
        lines.append(f"| `{metric.name}` | {metric.type} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the files."""
    for path, content in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)


if __name__ == "__main__":
    main()
