"""
Stage 6: the metrics page.

Totals and gauges of the audit are read from the store for each scrape, so a restart changes no total;
metrics of the process are ordinary client metrics. Everything sits on a registry of its own.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import product

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from rtc_appservice.core.model import CallReport, CallSession, Finding
from rtc_appservice.core.observed import Observation, Rejected, RoomKey, ToDeviceKey, Withheld
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import KeyTransport
from rtc_appservice.errors import StoreUnavailable
from rtc_appservice.export.events import EventMaker
from rtc_appservice.export.posthog import Answer
from rtc_appservice.export.pseudonym import Pseudonyms
from rtc_appservice.export.store_metrics import PREFIX, SINK, STORED, Description, Reading, StoreCollector
from rtc_appservice.store.condition import load_condition
from rtc_appservice.store.outbox import OutboxRow
from rtc_appservice.store.pool import Pool, lend
from rtc_appservice.store.standing import load_standing

#: A transaction is acknowledged within the homeserver's patience (Synapse: a minute) or sent again.
DURATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
#: From a busy moment to a backlog.
LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0)
#: js-sdk uses a new key after 1 s (5 s as its class's default) and lets a rotation wait for 10 s.
KEY_AGE_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0)
SHARE_BUCKETS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)

#: No client's clock is believed beyond what is believed of a homeserver's.
OLDEST_KEY = timedelta(days=7)

#: So many calls are remembered as counted: one whose commit fails is projected again.
CALLS_REMEMBERED = 1000

#: Half of the ten seconds Prometheus gives a scrape.
STORE_TIMEOUT_SECONDS = 5.0

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
    "Events by their end: kept by the sink, refused for good and set aside, or never queued: unfit to be sent, or left"
    " out by sampling.",
    {"sink": (SINK,), "outcome": ("delivered", "dead_lettered", "misfit", "sampled_out")},
)
INGEST_LATENCY = Description(
    PREFIX + "ingest_latency_seconds",
    "histogram",
    "From a recorded room event's own time, its homeserver's clock, to its acknowledgement.",
)
KEY_AGE = Description(
    PREFIX + "key_delivery_age_seconds",
    "histogram",
    "From the time of sending a client claims in a media key message that was read to its arrival here.",
    {"key_transport": tuple(str(transport) for transport in KeyTransport)},
)
KEY_SKEW = Description(
    PREFIX + "key_clock_skew_total",
    "counter",
    "Media key messages whose claimed time lies ahead, counted as age 0, or over 7 days back, not counted as an age.",
)
CALL_SHARE = Description(
    PREFIX + "call_to_device_ratio",
    "histogram",
    "Share of to-device among the key distributions of a call session, for each that settled in this process.",
)
POOL = Description(
    PREFIX + "database_pool_connections",
    "gauge",
    "Database connections this process may have: in use, open and idle, and not opened.",
    {"state": ("used", "idle", "unopened")},
)
BUILD = Description(PREFIX + "build_info", "info", "The build that runs.", {"version": ()})

#: Every metric of ours, in the order of the documentation. `process_*` of the client library come on top.
DESCRIPTIONS: tuple[Description, ...] = (
    *STORED,
    TRANSACTIONS,
    TRANSACTION_DURATION,
    LAST_SUCCESS,
    INGEST_LATENCY,
    EVENTS,
    EVENTS_REJECTED,
    KEY_AGE,
    KEY_SKEW,
    CALL_SHARE,
    EXPORT_REQUESTS,
    EXPORT_EVENTS,
    POOL,
    BUILD,
)


class Metrics:
    """
    The registry of one process.

    Intake, the projector and the sender never import this: they are given `observe_transaction`, what `counting`
    gives, and `observe_export` as plain callables. `page` gives a scrape its answer.
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
        self._duration = _histogram(TRANSACTION_DURATION, DURATION_BUCKETS, self.registry)
        self._latency = _histogram(INGEST_LATENCY, LATENCY_BUCKETS, self.registry)
        self._key_age = _histogram(KEY_AGE, KEY_AGE_BUCKETS, self.registry)
        self._key_skew = _counter(KEY_SKEW, self.registry)
        self._call_share = _histogram(CALL_SHARE, SHARE_BUCKETS, self.registry)
        self._calls_counted: deque[str] = deque(maxlen=CALLS_REMEMBERED)
        self._connections = Gauge(POOL.name, POOL.help, tuple(POOL.labels), registry=self.registry)
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
        now = datetime.now(UTC)
        for observation in intake.observations:
            self._observe_observation(observation, now)

    def _observe_observation(self, observation: Observation, now: datetime) -> None:
        body = observation.body
        if isinstance(body, Rejected):
            self._rejected.labels(body.reason).inc()
            return
        if not isinstance(body, ToDeviceKey | Withheld):  # those come without a time of their own
            self._latency.observe((now - observation.event_at).total_seconds())
        if isinstance(body, RoomKey | ToDeviceKey) and body.claimed_sent_at is not None:
            age = observation.received_at - body.claimed_sent_at
            transport = KeyTransport.ROOM_EVENT if isinstance(body, RoomKey) else KeyTransport.TO_DEVICE
            if not timedelta(0) <= age <= OLDEST_KEY:
                self._key_skew.inc()
            if age <= OLDEST_KEY:
                self._key_age.labels(str(transport)).observe(max(0.0, age.total_seconds()))

    def counting(self, make: EventMaker, secret: bytes) -> EventMaker:
        """
        Take what the projector calls with each call; give the same, and count the calls that settle.

        Each is the exemplar of the bucket it falls in, under the pseudonym PostHog knows it by.
        """
        pseudonyms = Pseudonyms(secret)

        def make_and_count(
            session: CallSession, newly_settled: Sequence[Finding], first_time: bool
        ) -> Sequence[OutboxRow]:
            if session.report.settled:
                self._observe_call(session.report, pseudonyms.call(session.report.call_id))
            return make(session, newly_settled, first_time)

        return make_and_count

    def _observe_call(self, report: CallReport, pseudonym: str) -> None:
        seen = report.distributions.to_device + report.distributions.room_event
        if seen and pseudonym not in self._calls_counted:
            self._calls_counted.append(pseudonym)
            self._call_share.observe(report.distributions.to_device / seen, {"call": pseudonym})

    def observe_export(self, answer: Answer, delivered: int, dead: int) -> None:
        """Count one request to PostHog: its answer, and how many events left the outbox with it."""
        self._requests.labels(SINK, str(answer)).inc()
        self._exported.labels(SINK, "delivered").inc(delivered)
        self._exported.labels(SINK, "dead_lettered").inc(dead)

    def observe_misfit(self, _event: str) -> None:
        """Count one event that was not queued because it does not fit its description; the log names it."""
        self._exported.labels(SINK, "misfit").inc()

    def observe_sampled_out(self, events: int) -> None:
        """Count events that were not queued because their call is not in the sample."""
        self._exported.labels(SINK, "sampled_out").inc(events)

    async def page(self, accept: str) -> tuple[bytes, str]:
        """Take a scrape's `Accept` header; give the page and its content type (OpenMetrics if asked for)."""
        self._count_connections()
        reading = None
        try:
            async with lend(self._pool, STORE_TIMEOUT_SECONDS) as conn:
                now = datetime.now(UTC)
                standing = await load_standing(conn, now - timedelta(days=1))
                reading = Reading(standing, await load_condition(conn, now), now)
        except StoreUnavailable:
            pass  # said by `database_up`
        encode, content_type = choose_encoder(accept)
        self._store.reading = reading
        return encode(self.registry), content_type

    def _count_connections(self) -> None:
        """Note how the pool stands, before this scrape takes a connection of its own."""
        size, idle = self._pool.get_size(), self._pool.get_idle_size()
        self._connections.labels("used").set(size - idle)
        self._connections.labels("idle").set(idle)
        self._connections.labels("unopened").set(self._pool.get_max_size() - size)


def _counter(description: Description, registry: CollectorRegistry) -> Counter:
    """Make a counter whose every set of label values stands at 0 before it first happens."""
    counter = Counter(description.name, description.help, tuple(description.labels), registry=registry)
    for labels in product(*description.labels.values()) if description.labels else ():
        counter.labels(*labels)
    return counter


def _histogram(description: Description, buckets: Sequence[float], registry: CollectorRegistry) -> Histogram:
    """Make a histogram whose every set of label values stands at 0 before it first happens."""
    histogram = Histogram(
        description.name, description.help, tuple(description.labels), buckets=buckets, registry=registry
    )
    for labels in product(*description.labels.values()) if description.labels else ():
        histogram.labels(*labels)
    return histogram
