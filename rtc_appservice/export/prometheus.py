"""
Stage 6: the metrics page.

Totals and gauges of the audit are read from the store for each scrape, so a restart changes no total;
metrics of the process are ordinary client metrics. Everything sits on a registry of its own.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product

from msgspec import Struct, field
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from rtc_appservice.core.model import Rejected, ServerName, Verdict
from rtc_appservice.core.rollup import TOTALS
from rtc_appservice.core.wire import Intake
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.export.posthog import Answer
from rtc_appservice.store.pool import Pool, store_errors
from rtc_appservice.store.standing import HomeserverStanding, Standing, load_standing

PREFIX = "rtc_appservice_"

#: A transaction is acknowledged within the homeserver's patience (Synapse: a minute) or sent again.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

#: Half of the ten seconds Prometheus gives a scrape.
STORE_TIMEOUT_SECONDS = 5.0

#: The only sink there is. A label, so that a second one changes no name.
SINK = "posthog"


class Description(Struct, frozen=True):
    """What a metric is. A label without values takes the names of the operator's homeservers, or text of the build."""

    name: str
    type: str
    help: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


TRANSACTIONS = Description(
    PREFIX + "transactions_total",
    "counter",
    "Transaction requests of the homeserver, by what became of them; `nothing` held nothing of interest.",
    {"result": ("stored", "nothing", "refused", "failed")},
)
TRANSACTION_DURATION = Description(
    PREFIX + "transaction_duration_seconds",
    "histogram",
    "From a transaction request to its answer, which follows the commit.",
)
LAST_SUCCESS = Description(
    PREFIX + "ingest_last_success_timestamp_seconds",
    "gauge",
    "When a transaction was last acknowledged; 0 if none was since the process started.",
)
EVENTS = Description(
    PREFIX + "events_total",
    "counter",
    "Events in acknowledged transactions, of interest or not.",
    {"kind": ("event", "to_device", "ephemeral")},
)
EVENTS_REJECTED = Description(
    PREFIX + "events_rejected_total",
    "counter",
    "MatrixRTC events that were recorded as rejected.",
    {"reason": ("malformed", "implausible_time", "not_supported_yet", "pre_matrixrtc")},
)
EXPORT_REQUESTS = Description(
    PREFIX + "export_requests_total",
    "counter",
    "Requests to a sink, by answer.",
    {"sink": (SINK,), "outcome": tuple(str(answer) for answer in Answer)},
)
EXPORT_EVENTS = Description(
    PREFIX + "export_events_total",
    "counter",
    "Events that left the outbox: kept by the sink, or refused for good and set aside.",
    {"sink": (SINK,), "outcome": ("delivered", "dead_lettered")},
)
BUILD = Description(PREFIX + "build_info", "info", "The build that runs.", {"version": ()})
DATABASE_UP = Description(PREFIX + "database_up", "gauge", "1 if the database answered this scrape, else 0.")
CALLS_ACTIVE = Description(
    PREFIX + "calls_active",
    "gauge",
    "Call sessions going on, by verdict so far.",
    {"homeserver": (), "verdict": tuple(str(verdict) for verdict in Verdict)},
)
ROOMS_WATCHED = Description(PREFIX + "rooms_watched", "gauge", "Rooms in which MatrixRTC was seen.", {"homeserver": ()})
OUTBOX_PENDING = Description(PREFIX + "outbox_pending", "gauge", "Events waiting to be sent.", {"sink": (SINK,)})
OUTBOX_DEAD = Description(
    PREFIX + "outbox_dead", "gauge", "Events a sink refused for good, kept to be looked at.", {"sink": (SINK,)}
)
OUTBOX_AGE = Description(
    PREFIX + "outbox_oldest_pending_age_seconds",
    "gauge",
    "Age of the oldest event waiting to be sent, by its own timestamp; 0 if none waits.",
    {"sink": (SINK,)},
)

#: Every metric of ours, in the order of the documentation. `process_*` of the client library come on top.
DESCRIPTIONS: tuple[Description, ...] = (
    *(
        Description(f"{PREFIX}{total.name}_total", "counter", total.help, {"homeserver": (), **total.labels})
        for total in TOTALS
    ),
    CALLS_ACTIVE,
    ROOMS_WATCHED,
    OUTBOX_PENDING,
    OUTBOX_DEAD,
    OUTBOX_AGE,
    DATABASE_UP,
    TRANSACTIONS,
    TRANSACTION_DURATION,
    LAST_SUCCESS,
    EVENTS,
    EVENTS_REJECTED,
    EXPORT_REQUESTS,
    EXPORT_EVENTS,
    BUILD,
)


class Metrics:
    """
    The registry of one process.

    Intake and the sender never import this: they are given `observe_transaction` and `observe_export` as plain
    callables. `page` gives a scrape its answer.
    """

    def __init__(self, pool: Pool, homeservers: Iterable[str], version: str) -> None:
        """Take the pool to read totals from, the operator's homeservers and the version that runs."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left this one untyped
        self._pool = pool
        self._store = StoreCollector(homeservers)
        self.registry = CollectorRegistry()
        self.registry.register(self._store)
        ProcessCollector(registry=self.registry)
        self._transactions = _counter(TRANSACTIONS, self.registry)
        self._duration = Histogram(
            TRANSACTION_DURATION.name, TRANSACTION_DURATION.help, buckets=DURATION_BUCKETS, registry=self.registry
        )
        self._last_success = Gauge(LAST_SUCCESS.name, LAST_SUCCESS.help, registry=self.registry)
        self._events = _counter(EVENTS, self.registry)
        self._rejected = _counter(EVENTS_REJECTED, self.registry)
        self._requests = _counter(EXPORT_REQUESTS, self.registry)
        self._exported = _counter(EXPORT_EVENTS, self.registry)
        Info(BUILD.name.removesuffix("_info"), BUILD.help, registry=self.registry).info({"version": version})

    def observe_transaction(self, result: str, seconds: float, intake: Intake | None) -> None:
        """Count one transaction request: what became of it, how long it took, what it held if it was acknowledged."""
        self._transactions.labels(result).inc()
        self._duration.observe(seconds)
        if intake is None or result not in ("stored", "nothing"):
            return
        self._last_success.set_to_current_time()
        self._events.labels("event").inc(intake.event_count)
        self._events.labels("to_device").inc(intake.to_device_count)
        self._events.labels("ephemeral").inc(intake.ephemeral_count)
        for observation in intake.observations:
            if isinstance(observation.body, Rejected):
                self._rejected.labels(observation.body.reason).inc()

    def observe_export(self, answer: Answer, delivered: int, dead: int) -> None:
        """Count one request to PostHog: its answer, and how many events left the outbox with it."""
        self._requests.labels(SINK, str(answer)).inc()
        self._exported.labels(SINK, "delivered").inc(delivered)
        self._exported.labels(SINK, "dead_lettered").inc(dead)

    async def page(self, accept: str) -> tuple[bytes, str]:
        """Take a scrape's `Accept` header; give the page and its content type (OpenMetrics if asked for)."""
        now = datetime.now(UTC)
        standing = None
        try:
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                with store_errors():
                    async with self._pool.acquire() as conn:
                        standing = await load_standing(conn, now - timedelta(days=1))
        except (StoreUnavailable, TimeoutError):
            pass  # said by `database_up`
        encode, content_type = choose_encoder(accept)
        self._store.standing, self._store.now = standing, now
        return encode(self.registry), content_type


class StoreCollector(Collector):
    """Gives what the store said last. Without `standing` its metrics are missing rather than stale."""

    def __init__(self, homeservers: Iterable[str]) -> None:
        """Take the homeservers whose totals stand at 0 before anything happened."""
        self.standing: Standing | None = None
        self.now = datetime.now(UTC)
        self._configured = sorted(homeservers)

    def describe(self) -> Iterable[Metric]:
        """Say nothing: names are ours alone, and asking the store at registration would be too early."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Yield every metric that is read from the store."""
        yield GaugeMetricFamily(DATABASE_UP.name, DATABASE_UP.help, value=float(self.standing is not None))
        if self.standing is None:
            return
        homeservers = self._complete(self.standing.homeservers)
        for total in TOTALS:
            counter = CounterMetricFamily(PREFIX + total.name, total.help, labels=("homeserver", *total.labels))
            for each in homeservers:
                values = {tuple(labels.values()): 0 for labels in total.label_sets()}
                for row in each.totals:
                    if row.name == total.name:
                        values[tuple(row.labels.get(name, "") for name in total.labels)] = row.value
                for labels, count in values.items():
                    counter.add_metric((each.homeserver, *labels), count)
            yield counter
        active = GaugeMetricFamily(CALLS_ACTIVE.name, CALLS_ACTIVE.help, labels=tuple(CALLS_ACTIVE.labels))
        watched = GaugeMetricFamily(ROOMS_WATCHED.name, ROOMS_WATCHED.help, labels=tuple(ROOMS_WATCHED.labels))
        for each in homeservers:
            watched.add_metric((each.homeserver,), each.rooms_watched)
            for verdict in CALLS_ACTIVE.labels["verdict"]:
                active.add_metric((each.homeserver, verdict), each.calls_active.get(verdict, 0))
        yield active
        yield watched
        outbox = self.standing.outbox
        age = 0.0 if outbox.oldest_at is None else max(0.0, (self.now - outbox.oldest_at).total_seconds())
        gauges: tuple[tuple[Description, float], ...] = (
            (OUTBOX_PENDING, outbox.pending),
            (OUTBOX_DEAD, outbox.dead),
            (OUTBOX_AGE, age),
        )
        for description, value in gauges:
            gauge = GaugeMetricFamily(description.name, description.help, labels=("sink",))
            gauge.add_metric((SINK,), value)
            yield gauge

    def _complete(self, known: Sequence[HomeserverStanding]) -> list[HomeserverStanding]:
        """Add the configured homeservers the store has not met yet."""
        names = {each.homeserver for each in known}
        fresh = [HomeserverStanding(homeserver=ServerName(name)) for name in self._configured if name not in names]
        return [*known, *fresh]


def _counter(description: Description, registry: CollectorRegistry) -> Counter:
    """Make a counter whose every set of label values stands at 0 before it first happens."""
    counter = Counter(description.name, description.help, tuple(description.labels), registry=registry)
    for labels in product(*description.labels.values()):
        counter.labels(*labels)
    return counter
