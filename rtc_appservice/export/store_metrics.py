"""Stage 6: the metrics that are read from the store for each scrape, so that a restart changes none."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from msgspec import Struct, field
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rtc_appservice.core.rollup import TOTALS
from rtc_appservice.core.words import ServerName, Verdict
from rtc_appservice.store import partitions
from rtc_appservice.store.condition import Condition, HomeserverCondition
from rtc_appservice.store.standing import HomeserverStanding, Standing

PREFIX = "rtc_appservice_"

#: The only sink there is. A label, so that a second one changes no name.
SINK = "posthog"


class Description(Struct, frozen=True):
    """What a metric is. A label without values takes the names of the operator's homeservers, or text of the build."""

    name: str
    type: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


_TABLES = tuple(each.table for each in partitions.TABLES)

DATABASE_UP = Description(PREFIX + "database_up", "gauge", "1 if the database answered this scrape, else 0.")
CALLS_ACTIVE = Description(
    PREFIX + "calls_active",
    "gauge",
    "Call sessions going on, by verdict so far.",
    {"homeserver": (), "verdict": tuple(str(verdict) for verdict in Verdict)},
)
CALLS_SPLIT = Description(
    PREFIX + "calls_split_active",
    "gauge",
    "Call sessions going on in which two participants cannot get each other's media keys though both send.",
    {"homeserver": ()},
)
RTC_MEMBERS = Description(
    PREFIX + "rtc_members_active", "gauge", "Devices in call sessions going on.", {"homeserver": ()}
)
ROOMS_WATCHED = Description(PREFIX + "rooms_watched", "gauge", "Rooms in which MatrixRTC was seen.", {"homeserver": ()})
WATERMARK_LAG = Description(
    PREFIX + "watermark_lag_seconds",
    "gauge",
    "How far what was seen of the homeserver is behind the clock; about 30 when idle, missing before its first event.",
    {"homeserver": ()},
)
ROOMS_PENDING = Description(
    PREFIX + "rooms_pending", "gauge", "Rooms with news that wait to be projected.", {"homeserver": ()}
)
PROJECTION_LAG = Description(
    PREFIX + "projection_lag_seconds",
    "gauge",
    "Age of the oldest event that waits to be projected, by its own time; 0 if none waits.",
    {"homeserver": ()},
)
OUTBOX_PENDING = Description(PREFIX + "outbox_pending", "gauge", "Events waiting to be sent.", {"sink": (SINK,)})
OUTBOX_DEAD = Description(
    PREFIX + "outbox_dead", "gauge", "Events a sink refused for good, kept to be looked at.", {"sink": (SINK,)}
)
OUTBOX_AGE = Description(
    PREFIX + "outbox_oldest_pending_age_seconds",
    "gauge",
    "Time the oldest event waiting to be sent has waited; 0 if none waits.",
    {"sink": (SINK,)},
)
PARTITION_HORIZON = Description(
    PREFIX + "partition_horizon_seconds",
    "gauge",
    "How far ahead the partitions of a table reach without a hole; 0 if there is none for now.",
    {"table": _TABLES},
)
DEFAULT_PARTITION = Description(
    PREFIX + "default_partition_in_use",
    "gauge",
    "1 if rows stand in the default partition because they have none of their own, else 0.",
    {"table": _TABLES},
)

#: What is read from the store, in the order of the documentation.
STORED: tuple[Description, ...] = (
    *(
        Description(f"{PREFIX}{total.name}_total", "counter", total.help, {"homeserver": (), **total.labels})
        for total in TOTALS
    ),
    CALLS_ACTIVE,
    CALLS_SPLIT,
    RTC_MEMBERS,
    ROOMS_WATCHED,
    WATERMARK_LAG,
    ROOMS_PENDING,
    PROJECTION_LAG,
    OUTBOX_PENDING,
    OUTBOX_DEAD,
    OUTBOX_AGE,
    PARTITION_HORIZON,
    DEFAULT_PARTITION,
    DATABASE_UP,
)


class Reading(Struct, frozen=True):
    """What the store said for one scrape."""

    standing: Standing
    condition: Condition
    at: datetime


class StoreCollector(Collector):
    """Gives what the store said last. Without a `reading` its metrics are missing rather than stale."""

    def __init__(self, homeservers: Iterable[str]) -> None:
        """Take the homeservers whose totals stand at 0 before anything happened."""
        self.reading: Reading | None = None
        self._configured = sorted(homeservers)

    def describe(self) -> Iterable[Metric]:
        """Say nothing: names are ours alone, and asking the store at registration would be too early."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield every metric that is read from the store."""
        yield _gauge(DATABASE_UP, {(): float(self.reading is not None)})
        if self.reading is None:
            return
        standings = self._complete(self.reading.standing.homeservers)
        yield from _totals(standings)
        yield _gauge(
            CALLS_ACTIVE,
            {
                (each.homeserver, verdict): each.calls_active.get(verdict, 0)
                for each in standings
                for verdict in CALLS_ACTIVE.labels["verdict"]
            },
        )
        yield _gauge(ROOMS_WATCHED, {(each.homeserver,): each.rooms_watched for each in standings})
        known = {each.homeserver: each for each in self.reading.condition.homeservers}
        yield from _work(
            [known.get(s.homeserver, HomeserverCondition(homeserver=s.homeserver)) for s in standings], self.reading.at
        )
        outbox = self.reading.standing.outbox
        yield _gauge(OUTBOX_PENDING, {(SINK,): outbox.pending})
        yield _gauge(OUTBOX_DEAD, {(SINK,): outbox.dead})
        yield _gauge(OUTBOX_AGE, {(SINK,): _age(outbox.oldest_at, self.reading.at)})
        reach = self.reading.condition.partitions
        yield _gauge(PARTITION_HORIZON, {(each.table,): _ahead(each.covered_until, self.reading.at) for each in reach})
        yield _gauge(DEFAULT_PARTITION, {(each.table,): each.default_in_use for each in reach})

    def _complete(self, known: Sequence[HomeserverStanding]) -> list[HomeserverStanding]:
        """Add the configured homeservers the store has not met yet."""
        names = {each.homeserver for each in known}
        fresh = [HomeserverStanding(homeserver=ServerName(name)) for name in self._configured if name not in names]
        return [*known, *fresh]


def _totals(standings: Sequence[HomeserverStanding]) -> Iterable[Metric]:
    for total in TOTALS:
        counter = CounterMetricFamily(PREFIX + total.name, total.help, labels=("homeserver", *total.labels))
        for each in standings:
            values = {tuple(labels.values()): 0 for labels in total.label_sets()}
            for row in each.totals:
                if row.name == total.name:
                    values[tuple(row.labels.get(name, "") for name in total.labels)] = row.value
            for labels, count in values.items():
                counter.add_metric((each.homeserver, *labels), count)
        yield counter


def _work(conditions: Sequence[HomeserverCondition], now: datetime) -> Iterable[Metric]:
    yield _gauge(CALLS_SPLIT, {(each.homeserver,): each.calls_split_active for each in conditions})
    yield _gauge(RTC_MEMBERS, {(each.homeserver,): each.rtc_members_active for each in conditions})
    yield _gauge(ROOMS_PENDING, {(each.homeserver,): each.rooms_pending for each in conditions})
    yield _gauge(PROJECTION_LAG, {(each.homeserver,): _age(each.oldest_pending_at, now) for each in conditions})
    seen = [each for each in conditions if each.watermark_at is not None]
    yield _gauge(WATERMARK_LAG, {(each.homeserver,): _age(each.watermark_at, now) for each in seen})


def _gauge(description: Description, values: Mapping[tuple[str, ...], float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(description.name, description.help, labels=tuple(description.labels))
    for labels, value in values.items():
        gauge.add_metric(labels, value)
    return gauge


def _age(at: datetime | None, now: datetime) -> float:
    """Give the seconds since a time; 0 if there is none, or if it lies ahead."""
    return 0.0 if at is None else max(0.0, (now - at).total_seconds())


def _ahead(at: datetime | None, now: datetime) -> float:
    """Give the seconds until a time; 0 if there is none."""
    return 0.0 if at is None else (at - now).total_seconds()
