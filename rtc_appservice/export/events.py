"""Stage 6: what a projected call becomes in PostHog. Pure: the same call and findings give the same rows, always."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from msgspec import Struct, ValidationError

from rtc_appservice.core.model import CallSession, DeviceRef, Finding, KeyDistribution, UndecryptableKey
from rtc_appservice.core.rollup import fallback_of
from rtc_appservice.core.words import BLOCKING_CAUSES, FallbackCause, FindingKind, UserId
from rtc_appservice.export import properties as p
from rtc_appservice.export.pseudonym import Pseudonyms, period
from rtc_appservice.store.outbox import OutboxRow
from rtc_appservice.store.standing import Standing

_log = logging.getLogger("rtc_appservice.export")

#: So many `RtcKeyUndecryptable` are sent of one call: more say nothing more.
MAX_UNDECRYPTABLE = 100

#: What the projector calls with a call, the findings that settled with this projection, and whether the call is new.
EventMaker = Callable[[CallSession, Sequence[Finding], bool], Sequence[OutboxRow]]

#: Called with the name of an event that does not fit its description, and where it does not; never with the value.
Dropped = Callable[[str, str], None]


class Terms(Struct, frozen=True, kw_only=True):
    """On what terms facts become events."""

    secret: bytes
    app_version: str
    sample_rate: float = 1.0  #: share of the calls whose `RtcKeyDistributed` are sent
    pseudonym_rotation_days: int | None = None  #: None: pseudonyms of rooms, users and devices hold for ever


def event_maker(
    terms: Terms,
    observe_misfit: Callable[[str], None] = lambda event: None,
    observe_sampled_out: Callable[[int], None] = lambda events: None,
) -> EventMaker:
    """
    Take the terms; give the function the projector writes outbox rows with.

    Args:
        observe_misfit: called with the name of an event that was dropped because it did not fit its description.
        observe_sampled_out: called with the number of events that sampling left out, for each call it left out.
    """

    def dropped(event: str, where: str) -> None:
        _log.error("an event does not fit its description and is not sent", extra={"event_name": event, "at": where})
        observe_misfit(event)

    def make(session: CallSession, newly_settled: Sequence[Finding], first_time: bool) -> Sequence[OutboxRow]:
        if session.report.settled and not _Call(session, terms).is_sampled:
            observe_sampled_out(len(session.distributions))
        return outbox_rows(session, newly_settled, first_time=first_time, terms=terms, dropped=dropped)

    return make


def outbox_rows(
    session: CallSession,
    newly_settled: Sequence[Finding],
    *,
    first_time: bool,
    terms: Terms,
    dropped: Dropped = lambda event, where: None,
) -> list[OutboxRow]:
    """
    Take a projected call and the findings that settled with this projection; give the rows to send.

    A call passed as settled gives its `RtcCallEnded`, `RtcKeyDistributed` and `RtcKeyUndecryptable` rows: the projector
    passes it so once.
    A value that no description allows costs its own row only: the call, its findings and its other rows stay.
    """
    call = _Call(session, terms)
    wanted: list[tuple[type[p.Common], Callable[[], OutboxRow]]] = []
    if first_time:
        wanted.append((p.RtcCallStarted, call.started))
    for finding in newly_settled:
        match finding.kind:
            case FindingKind.FALLBACK | FindingKind.STRAY_KEY:
                wanted.append((p.RtcKeyFallback, partial(call.fallback, finding)))
            case FindingKind.KEY_NOT_RECEIVED:
                wanted.append((p.RtcKeyNotReceived, partial(call.key_not_received, finding)))
            case FindingKind.SPLIT_CALL:
                wanted.append((p.RtcSplitCall, partial(call.split_call, finding)))
    if session.report.settled:
        if call.is_sampled:
            wanted += [(p.RtcKeyDistributed, partial(call.distributed, each)) for each in session.distributions]
        first = sorted(session.undecryptable, key=lambda key: (key.at, key.identity))[:MAX_UNDECRYPTABLE]
        wanted += [(p.RtcKeyUndecryptable, partial(call.key_undecryptable, key)) for key in first]
        wanted.append((p.RtcCallEnded, call.ended))
    rows = []
    for event, make in wanted:
        try:
            rows.append(make())
        except (ValueError, LookupError, TypeError) as error:  # what msgspec raises is a ValueError
            dropped(event.__name__, _where(error))
    return rows


def _where(error: Exception) -> str:
    """Give the place of a misfit, or the class of the error: never its text, which may quote the value."""
    _, found, path = str(error).rpartition(" - at ")
    return path if found and isinstance(error, ValidationError) else type(error).__name__


def auditor_rows(
    standing: Standing, *, terms: Terms, process: str, started_at: datetime, now: datetime
) -> list[OutboxRow]:
    """
    Take how everything stands; give one `RtcAuditorReport` for each homeserver.

    Args:
        process: told apart from every other process and start; with the hour it makes the uuid.
    """
    pseudonyms = Pseudonyms(terms.secret)
    hour = now.replace(minute=0, second=0, microsecond=0)
    waiting = standing.outbox
    oldest = 0.0 if waiting.oldest_at is None else max(0.0, (now - waiting.oldest_at).total_seconds())
    rows = []
    for each in standing.homeservers:
        event = p.RtcAuditorReport(
            homeserver=each.homeserver,
            app_version=terms.app_version,
            calls_active=sum(each.calls_active.values()),
            rooms_watched=each.rooms_watched,
            outbox_pending=waiting.pending,
            outbox_oldest_age_seconds=oldest,
            gaps=each.gaps,
            uptime_seconds=max(0.0, (now - started_at).total_seconds()),
        )
        name = type(event).__name__
        rows.append(
            OutboxRow(
                uuid=pseudonyms.uuid(name, each.homeserver, process, hour.isoformat()),
                event=name,
                distinct_id=f"auditor:{pseudonyms.auditor(each.homeserver)}",
                timestamp=now,
                properties=p.checked(event),
            )
        )
    return rows


class _Call:
    """One call on its way to PostHog: what all its events share."""

    def __init__(self, session: CallSession, terms: Terms) -> None:
        report = session.report
        self.session = session
        self.report = report
        self.terms = terms
        self.pseudonyms = Pseudonyms(terms.secret, period(report.started_at, terms.pseudonym_rotation_days))
        self.shared: dict[str, Any] = {
            "homeserver": report.homeserver,
            "app_version": terms.app_version,
            "room": self.pseudonyms.room(report.room_id),
            "is_federated": any(_server(q.user_id) != report.homeserver for q in report.participants),
            "is_encrypted_room": report.encrypted_room,
            "membership_mode": report.membership_mode,
        }

    @property
    def is_sampled(self) -> bool:
        """Tell whether the distributions of the call are sent."""
        return self.pseudonyms.share(self.report.call_id) < self.terms.sample_rate

    def started(self) -> OutboxRow:
        event = p.RtcCallStarted(**self.shared, is_beginning_seen=self.report.beginning_seen)
        return self._row(event, self.report.started_at, "")

    def ended(self) -> OutboxRow:
        report = self.report
        ended_at = report.ended_at or report.started_at
        owed = report.obligations
        event = p.RtcCallEnded(
            **self.shared,
            is_beginning_seen=report.beginning_seen,
            duration_seconds=max(0.0, (ended_at - report.started_at).total_seconds()),
            verdict=report.verdict,
            evidence=report.evidence,
            coverage=list(report.coverage),
            max_participants=report.max_participants,
            participants=len(report.participants),
            distributions_room_event=report.distributions.room_event,
            distributions_to_device=report.distributions.to_device,
            resends=report.distributions.resends,
            deliveries_to_device=report.deliveries.to_device,
            obligations_delivered=owed.delivered,
            obligations_late=owed.late,
            obligations_room_event=owed.room_event,
            obligations_recovered_by_room_event=owed.recovered_by_room_event,
            obligations_missing=owed.missing,
            obligations_excused=owed.excused,
            obligations_unconfirmed=owed.unconfirmed,
            obligations_unobservable=owed.unobservable,
            fallbacks=len(report.fallbacks),
            blockers=len({(f.user_id, f.device_id) for f in report.fallbacks if f.cause in BLOCKING_CAUSES}),
            keys_undecryptable=len(self.session.undecryptable),
            is_sampled=self.is_sampled,
        )
        return self._row(event, ended_at, "")

    def distributed(self, distribution: KeyDistribution) -> OutboxRow:
        event = p.RtcKeyDistributed(
            **self.shared,
            key_transport=distribution.key_transport,
            device=self._device(distribution.sender),
            key_index=distribution.index,
            recipients=distribution.recipients,
            is_resend=distribution.resend,
            is_after_leave=distribution.after_leave,
            sample_rate=self.terms.sample_rate,
            evidence=distribution.evidence,
        )
        return self._row(event, distribution.at, distribution.distribution_id)

    def fallback(self, finding: Finding) -> OutboxRow:
        fallback = fallback_of(self.session, finding)
        cause = fallback.cause if fallback else FallbackCause.UNKNOWN
        event = p.RtcKeyFallback(
            **self.shared,
            cause=cause,
            is_blocker=cause in BLOCKING_CAUSES,
            device=self._device(finding.subject),
            user=self.pseudonyms.user(finding.subject.user_id) if finding.subject else None,
            caused_by=self._device(fallback.caused_by if fallback else None),
            candidates=list(fallback.candidates) if fallback else [],
            room_keys=fallback.room_keys if fallback else 0,
            generation=self._generation(finding.subject),
            was_key_private=fallback.key_was_private if fallback else None,
            confidence=fallback.confidence if fallback else 0.0,
            evidence=finding.evidence,
        )
        return self._row(event, finding.at, finding.finding_id)

    def key_not_received(self, finding: Finding) -> OutboxRow:
        event = p.RtcKeyNotReceived(
            **self.shared,
            outcome=finding.details["outcome"],
            covered_by=finding.details.get("covered_by"),
            device=self._device(finding.subject),
            recipient=self._named(finding, "recipient"),
            moment=finding.details.get("moment"),
            waited_seconds=finding.details.get("waited_seconds"),
            severity=finding.severity,
            evidence=finding.evidence,
        )
        return self._row(event, finding.at, finding.finding_id)

    def key_undecryptable(self, key: UndecryptableKey) -> OutboxRow:
        event = p.RtcKeyUndecryptable(
            **self.shared,
            key_transport=key.key_transport,
            reason=key.reason,
            withheld_code=key.withheld_code,
            was_opened_later=key.opened_at is not None,
            opened_after_seconds=None if key.opened_at is None else max(0.0, (key.opened_at - key.at).total_seconds()),
            device=self.pseudonyms.device(key.sender.user_id, key.sender.device_id),
            user=self.pseudonyms.user(key.sender.user_id),
            generation=self._generation(key.sender),
            evidence=key.evidence,
        )
        return self._row(event, key.at, key.identity)

    def split_call(self, finding: Finding) -> OutboxRow:
        event = p.RtcSplitCall(
            **self.shared,
            device=self._device(finding.subject),
            other_device=self._named(finding, "other"),
            split=finding.details.get("split"),
            severity=finding.severity,
            evidence=finding.evidence,
        )
        return self._row(event, finding.at, finding.finding_id)

    def _row(self, event: p.Common, at: datetime, natural_key: str) -> OutboxRow:
        name = type(event).__name__
        return OutboxRow(
            uuid=self.pseudonyms.uuid(name, self.report.homeserver, self.report.call_id, natural_key),
            event=name,
            distinct_id=f"call:{self.pseudonyms.call(self.report.call_id)}",
            timestamp=at,
            properties=p.checked(event),
        )

    def _device(self, device: DeviceRef | None) -> str | None:
        return self.pseudonyms.device(device.user_id, device.device_id) if device else None

    def _named(self, finding: Finding, detail: str) -> str | None:
        """Give the pseudonym of a device named in a finding's details."""
        device = finding.details.get(detail)
        return self.pseudonyms.device(device["user_id"], device["device_id"]) if device else None

    def _generation(self, device: DeviceRef | None) -> str:
        for q in self.report.participants:
            if device == DeviceRef(user_id=q.user_id, device_id=q.device_id):
                return q.generation
        return "unknown"


def _server(user_id: UserId) -> str:
    """Give the server part of a user id: all after the first colon, for a server name may hold a port."""
    return user_id.partition(":")[2]
