"""The metrics page, scraped over HTTP and parsed by the client library: names, values, formats."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import aiohttp
import msgspec
import pytest
from aiohttp import web
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from rtc_appservice.core.model import DistributionCounts
from rtc_appservice.core.observed import Body, KeyMark, Observation, Rejected, RoomKey, ToDeviceKey
from rtc_appservice.core.rollup import TOTALS, increments
from rtc_appservice.core.wire import Intake
from rtc_appservice.core.words import RoomId, ServerName
from rtc_appservice.export.events import Terms, outbox_rows
from rtc_appservice.export.posthog import Answer
from rtc_appservice.export.prometheus import DESCRIPTIONS, Metrics
from rtc_appservice.export.pseudonym import Pseudonyms
from rtc_appservice.store import outbox
from rtc_appservice.store.partitions import maintain
from rtc_appservice.store.pool import Pool
from rtc_appservice.store.streams import heartbeat, open_stream
from rtc_appservice.view.health import health_app

from .projected_call import ALICE, BOB, IDENTIFIERS, START, make_call

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(page: str) -> Samples:
    """Give every sample of a page in the text format."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(page)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    """Give a sample's key."""
    return f"rtc_appservice_{name}", frozenset(labels.items())


class Scraped:
    """An admin listener under test."""

    def __init__(self, metrics: Metrics, address: str) -> None:
        self.metrics = metrics
        self.address = address

    async def scrape(self, accept: str = "text/plain") -> tuple[str, str]:
        """Give the page and its content type."""
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"{self.address}/metrics", headers={"Accept": accept}) as answer,
        ):
            assert answer.status == 200
            return await answer.text(), answer.headers["Content-Type"]


async def _nothing() -> None:
    return None


@pytest.fixture
async def listener(pool: Pool) -> AsyncIterator[Scraped]:
    """Serve the metrics of one process on loopback."""
    metrics = Metrics(pool, ["example.org"], "1.2.3")
    runner = web.AppRunner(health_app(metrics.page, _nothing))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield Scraped(metrics, f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


async def add_totals(pool: Pool, homeserver_id: int) -> None:
    """Write what a settled call and its findings add, as the projector does."""
    call = make_call()
    async with pool.acquire() as conn:
        await conn.executemany(
            """
            INSERT INTO rollup (homeserver_id, name, labels, value) VALUES ($1, $2, $3::jsonb, $4)
            ON CONFLICT (homeserver_id, name, labels) DO UPDATE SET value = rollup.value + excluded.value
            """,
            [
                (homeserver_id, name, "{" + ",".join(f'"{k}":"{v}"' for k, v in labels.items()) + "}", amount)
                for name, labels, amount in increments(call, call.report.findings, True)
            ],
        )


async def test_everything_stands_at_zero(listener: Scraped) -> None:
    """Before anything happened, every series is there, so that its first increase is seen as one."""
    page, content_type = await listener.scrape()
    found = samples(page)

    assert content_type.startswith("text/plain")
    for total in TOTALS:
        for labels in total.label_sets():
            assert found[key(f"{total.name}_total", homeserver="example.org", **labels)] == 0
    assert found[key("transactions_total", result="stored")] == 0
    assert found[key("export_requests_total", sink="posthog", outcome="quota_limited")] == 0
    assert found[key("database_up")] == 1
    assert found[key("build_info", version="1.2.3")] == 1
    assert not [name for name, _ in found if name.endswith("_created")]


async def test_totals_survive_the_process(pool: Pool, listener: Scraped) -> None:
    """Totals come from the store: a new process shows what the last one did."""
    async with pool.acquire() as conn:
        stream = await open_stream(conn, ServerName("example.org"))
    await add_totals(pool, stream.homeserver_id)
    await add_totals(pool, stream.homeserver_id)

    found = samples((await listener.scrape())[0])
    again = samples((await Metrics(pool, ["example.org"], "1.2.4").page(""))[0].decode())

    assert found[key("calls_ended_total", homeserver="example.org", verdict="mixed", evidence="inferred")] == 2
    assert found[key("key_fallbacks_total", homeserver="example.org", cause="followed", evidence="direct")] == 2
    for name in (f"rtc_appservice_{total.name}_total" for total in TOTALS):
        assert {k: v for k, v in found.items() if k[0] == name} == {k: v for k, v in again.items() if k[0] == name}


async def test_outbox_and_calls(pool: Pool, listener: Scraped) -> None:
    """What waits and what goes on is read from the store; no identifier is on the page."""
    call = make_call()
    long_ago = datetime.now(UTC) - timedelta(seconds=100)
    terms = Terms(secret=b"secret", app_version="1")
    rows = outbox_rows(call, call.report.findings, first_time=True, terms=terms)
    async with pool.acquire() as conn:
        stream = await open_stream(conn, ServerName("example.org"))
        await outbox.put(conn, rows, long_ago)
        await outbox.dead(conn, [rows[0].uuid])
        await conn.execute(
            "INSERT INTO call_session VALUES (1, $1, 'call', $2, 'm.call#ROOM', NULL, 'mixed', 'direct', false, '{}')",
            START,
            stream.homeserver_id,
        )

    page, _ = await listener.scrape()
    found = samples(page)

    assert found[key("outbox_pending", sink="posthog")] == len(rows) - 1
    assert found[key("outbox_dead", sink="posthog")] == 1
    assert found[key("outbox_oldest_pending_age_seconds", sink="posthog")] >= 100
    assert found[key("calls_active", homeserver="example.org", verdict="mixed")] == 1
    assert found[key("calls_active", homeserver="example.org", verdict="solo")] == 0
    assert [word for word in IDENTIFIERS if word in page] == []


async def test_process_metrics(listener: Scraped) -> None:
    """What intake and the sender report is counted as it comes."""
    rejected = Observation(
        homeserver=ServerName("example.org"),
        room_id=RoomId("!r"),
        identity="$e",
        event_at=START,
        received_at=START,
        body=Rejected(sender=None, event_type="t", reason="malformed"),
    )
    held = Intake(observations=[rejected], event_count=10, to_device_count=3, ephemeral_count=2)
    before = datetime.now(UTC) - timedelta(seconds=1)

    listener.metrics.observe_transaction("stored", 0.02, held)
    listener.metrics.observe_transaction("failed", 0.3, held)
    listener.metrics.observe_transaction("refused", 0.001, None)
    listener.metrics.observe_export(Answer.OK, 7, 0)
    listener.metrics.observe_export(Answer.REJECTED, 0, 1)
    listener.metrics.observe_misfit("RtcKeyNotReceived")
    listener.metrics.observe_sampled_out(4)
    found = samples((await listener.scrape())[0])

    assert [found[key("transactions_total", result=r)] for r in ("stored", "nothing", "refused", "failed")] == [
        1,
        0,
        1,
        1,
    ]
    assert found[key("transaction_duration_seconds_count")] == 3
    assert found[key("events_total", kind="event")] == 10
    assert found[key("events_total", kind="to_device")] == 3
    assert found[key("events_rejected_total", reason="malformed")] == 1
    assert found[key("ingest_last_success_timestamp_seconds")] >= before.timestamp()
    assert found[key("export_requests_total", sink="posthog", outcome="ok")] == 1
    assert found[key("export_events_total", sink="posthog", outcome="delivered")] == 7
    assert found[key("export_events_total", sink="posthog", outcome="dead_lettered")] == 1
    assert found[key("export_events_total", sink="posthog", outcome="misfit")] == 1
    assert found[key("export_events_total", sink="posthog", outcome="sampled_out")] == 4


async def test_openmetrics_on_request(listener: Scraped) -> None:
    """A scraper that asks for OpenMetrics gets it, and it parses as such."""
    page, content_type = await listener.scrape("application/openmetrics-text; version=1.0.0")

    assert content_type.startswith("application/openmetrics-text")
    parsed = openmetrics_parser.text_string_to_metric_families(page)  # type: ignore[no-untyped-call]  # by the library
    families = {family.name for family in parsed}
    assert {"rtc_appservice_calls_ended", "rtc_appservice_transactions"} <= families


async def test_page_holds_what_is_documented(listener: Scraped) -> None:
    """Each metric of ours on the page is described, with the same type and help, and none is missing."""
    page, _ = await listener.scrape()
    families = {
        family.name: family
        for family in parser.text_string_to_metric_families(page)
        if family.name.startswith("rtc_appservice_")
    }
    documented = {metric.name.removesuffix("_total"): metric for metric in DESCRIPTIONS}

    assert set(families) == set(documented)
    for name, metric in documented.items():
        assert families[name].documentation == metric.help
        assert families[name].type == ("gauge" if metric.type == "info" else metric.type)


async def test_database_gone(pool: Pool, listener: Scraped) -> None:
    """Without the database the page still comes: its totals are missing, not stale, and it says why."""
    await listener.scrape()
    await pool.close()

    found = samples((await listener.scrape())[0])

    assert found[key("database_up")] == 0
    assert found[key("transactions_total", result="stored")] == 0
    assert not [name for name, _ in found if name == "rtc_appservice_calls_ended_total"]


async def test_two_processes_share_nothing(pool: Pool) -> None:
    """Counters of one instance do not show in another's: no global registry is used."""
    one, other = Metrics(pool, [], "1"), Metrics(pool, [], "1")
    one.observe_transaction("stored", 0.1, Intake())

    assert samples((await one.page(""))[0].decode())[key("transactions_total", result="stored")] == 1
    assert samples((await other.page(""))[0].decode())[key("transactions_total", result="stored")] == 0


def observed(body: Body, event_at: datetime, received_at: datetime) -> Observation:
    """Give an observation of a body."""
    return Observation(
        homeserver=ServerName("example.org"),
        room_id=RoomId("!r"),
        identity="$e",
        event_at=event_at,
        received_at=received_at,
        body=body,
    )


def room_key(claimed_sent_at: datetime | None) -> RoomKey:
    """Give a room key with the time its client claims."""
    return RoomKey(
        sender=ALICE.user_id,
        device_id=ALICE.device_id,
        slot_id="m.call#ROOM",
        keys=(KeyMark(index=0),),
        event_type="io.element.call.encryption_keys",
        claimed_sent_at=claimed_sent_at,
    )


def to_device_key(claimed_sent_at: datetime) -> ToDeviceKey:
    """Give a to-device key with the time its client claims."""
    return ToDeviceKey(
        sender=ALICE.user_id,
        recipient=BOB.user_id,
        recipient_device=BOB.device_id,
        claimed_device_id=None,
        slot_id="m.call#ROOM",
        keys=(KeyMark(index=0),),
        event_type="io.element.call.encryption_keys",
        encrypted=False,
        claimed_sent_at=claimed_sent_at,
    )


async def test_latency_of_room_events(listener: Scraped) -> None:
    """A room event's latency is by its own time; rejected and to-device ones have none to trust."""
    now = datetime.now(UTC)
    old = now - timedelta(seconds=20)
    rejected = Rejected(sender=None, event_type="t", reason="implausible_time")
    bodies = (room_key(None), to_device_key(now), rejected)
    intake = Intake(observations=[observed(body, old, now) for body in bodies])
    listener.metrics.observe_transaction("stored", 0.1, intake)
    found = samples((await listener.scrape())[0])

    assert 1 == found[key("ingest_latency_seconds_count")]
    assert 0 == found[key("ingest_latency_seconds_bucket", le="10.0")]
    assert 1 == found[key("ingest_latency_seconds_bucket", le="30.0")]


async def test_key_ages(listener: Scraped) -> None:
    """Ages are by the client's claim; what claims the future counts as 0, what claims long ago not at all."""
    now = datetime.now(UTC)
    bodies = (
        room_key(now - timedelta(seconds=3)),
        room_key(now + timedelta(seconds=3)),
        room_key(now - timedelta(days=8)),
        room_key(None),
        to_device_key(now - timedelta(milliseconds=40)),
    )
    intake = Intake(observations=[observed(body, now, now) for body in bodies])
    listener.metrics.observe_transaction("stored", 0.1, intake)
    found = samples((await listener.scrape())[0])

    assert 2 == found[key("key_delivery_age_seconds_count", key_transport="room_event")]
    assert 1 == found[key("key_delivery_age_seconds_bucket", key_transport="room_event", le="0.01")]
    assert 3 == pytest.approx(found[key("key_delivery_age_seconds_sum", key_transport="room_event")])
    assert 1 == found[key("key_delivery_age_seconds_bucket", key_transport="to_device", le="0.05")]
    assert 2 == found[key("key_clock_skew_total")]


async def test_settled_calls_are_exemplars(listener: Scraped) -> None:
    """A call is counted once, when it settles, and is the exemplar of its bucket under its pseudonym."""
    call = make_call()
    counted = msgspec.structs.replace(
        call,
        report=msgspec.structs.replace(
            call.report, settled=True, distributions=DistributionCounts(room_event=1, to_device=3)
        ),
    )
    going_on = msgspec.structs.replace(counted, report=msgspec.structs.replace(counted.report, settled=False))
    rows = outbox_rows(call, (), first_time=True, terms=Terms(secret=b"secret", app_version="1"))
    make = listener.metrics.counting(lambda *_: rows, b"secret")

    assert [rows] * 3 == [make(each, (), False) for each in (going_on, counted, counted)]
    page, _ = await listener.scrape("application/openmetrics-text; version=1.0.0")
    (bucket,) = [line for line in page.splitlines() if "call_to_device_ratio_bucket" in line and "#" in line]

    assert bucket.startswith('rtc_appservice_call_to_device_ratio_bucket{le="0.75"} 1.0 # ')
    assert f'{{call="{Pseudonyms(b"secret").call(call.report.call_id)}"}} 0.75' in bucket
    assert "rtc_appservice_call_to_device_ratio_count 1.0" in page
    assert [word for word in IDENTIFIERS if word in page] == []


async def test_work_and_partitions(pool: Pool, listener: Scraped) -> None:
    """What waits, how far partitions reach and what the pool holds is on the page."""
    now = datetime.now(UTC)
    fresh = samples((await listener.scrape())[0])
    async with pool.acquire() as conn:
        stream = await open_stream(conn, ServerName("example.org"))
        await heartbeat(conn, stream.homeserver_id, now, now - timedelta(seconds=100))
        await maintain(conn, now)
        await conn.execute(
            "INSERT INTO dirty_room (room_key, homeserver_id, event_at) VALUES (1, $1, $2)",
            stream.homeserver_id,
            now - timedelta(seconds=50),
        )
        found = samples((await listener.scrape())[0])

    assert 0 == fresh[key("partition_horizon_seconds", table="observation")]
    assert key("watermark_lag_seconds", homeserver="example.org") not in fresh
    assert 0 == fresh[key("calls_split_active", homeserver="example.org")]
    assert 100 <= found[key("watermark_lag_seconds", homeserver="example.org")] < 200
    assert 50 <= found[key("projection_lag_seconds", homeserver="example.org")] < 150
    assert 1 == found[key("rooms_pending", homeserver="example.org")]
    assert timedelta(days=28) <= timedelta(seconds=found[key("partition_horizon_seconds", table="observation")])
    assert 0 == found[key("default_partition_in_use", table="observation")]
    states = {state: found[key("database_pool_connections", state=state)] for state in ("used", "idle", "unopened")}
    assert 8 == sum(states.values())
    assert 1 == states["used"]


async def test_series_are_bounded(listener: Scraped) -> None:
    """One homeserver's page stays small however much happens: rendering it holds up the event loop."""
    assert len(samples((await listener.scrape())[0])) < 500
