"""
What `doctor` found of an installation: an answer or a fact in, one line with what to do about it out.

What homeservers answer was seen of Synapse 1.163.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from rtc_appservice.core.wording import plain

#: Older PostgreSQL lacks what the queries use.
POSTGRESQL_MIN = 15
#: How a homeserver says that it has the ping (MSC2659, Matrix 1.7).
_PING_FLAGS = ("fi.mau.msc2659", "fi.mau.msc2659.stable")
_REGISTER_AGAIN = (
    "name {path} in app_service_config_files of homeserver.yaml and restart the homeserver; if it has a copy, make it"
    " the same"
)
_LONGEST = 200


class Outcome(StrEnum):
    """How a step went."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


class Check(Struct, frozen=True, kw_only=True):
    """One step of `doctor`."""

    step: str
    outcome: Outcome
    text: str
    advice: str | None = None  #: what to do; given with every failure


class Answer(Struct, frozen=True, kw_only=True):
    """What came of one request: a status with JSON, if it was JSON, or why there was no answer."""

    status: int | None = None
    body: Mapping[str, Any] = {}
    problem: str = ""  #: why there is no status

    @property
    def errcode(self) -> str:
        """The Matrix error code, empty if there is none."""
        return _text(self.body, "errcode")

    @property
    def said(self) -> str:
        """What was answered, in one line fit for a terminal."""
        if self.status is None:
            return self.problem
        words = (f"HTTP {self.status}", self.errcode, plain(_text(self.body, "error"))[:_LONGEST])
        return " ".join(word for word in words if word)


class Listening(StrEnum):
    """Who answers on the port that the homeserver is to reach."""

    HERE = "here"  #: nobody did, so `doctor` listens itself for the time it takes
    SERVICE = "service"  #: the running service
    OTHER_REGISTRATION = "other_registration"  #: a service that does not take the registration's hs_token
    OTHER_PROGRAM = "other_program"


def ok(step: str, text: str) -> Check:
    """Give a step that went well."""
    return Check(step=step, outcome=Outcome.OK, text=text)


def skipped(step: str, text: str) -> Check:
    """Give a step that was not taken, with the reason."""
    return Check(step=step, outcome=Outcome.SKIPPED, text=text)


def failed(step: str, text: str, advice: str) -> Check:
    """Give a step that failed, with what to do."""
    return Check(step=step, outcome=Outcome.FAILED, text=text, advice=advice)


def fault(step: str, said: str) -> Check:
    """Give a step that an error ended: its first sentence says what is wrong, those after it what to do."""
    text, _, advice = one_line(said).partition(". ")
    return failed(step, text, advice or "see the log of the homeserver, and that of the service")


# --- the database ----------------------------------------------------------------------------------


def judge_database(version: int, current: str | None, head: str) -> Check:
    """Take the server's version number (as 150004), the revision it is at and the newest one."""
    major = version // 10_000
    if major < POSTGRESQL_MIN:
        return failed(
            "database",
            f"PostgreSQL {major} is too old",
            f"use PostgreSQL {POSTGRESQL_MIN} or later, or leave database.url out for the embedded one",
        )
    if current != head:
        found = "is empty" if current is None else f"is at {current}"
        return failed(
            "database",
            f"it {found}, this version needs {head}",
            "run `rtc-appservice db upgrade`; `run` does the same at start",
        )
    return ok("database", f"PostgreSQL {major}, at {head}")


# --- the homeserver --------------------------------------------------------------------------------


def judge_homeserver(address: str, answer: Answer) -> Check:
    """Take the answer of `/_matrix/client/versions`, which tells neither the server's name nor its make."""
    if answer.status is None:
        return failed(
            "homeserver",
            f"{address} does not answer: {answer.problem}",
            "start the homeserver, or correct homeserver.address: where its client API is reached from here",
        )
    versions = answer.body.get("versions")
    if answer.status != 200 or not isinstance(versions, list) or not versions:
        return failed(
            "homeserver",
            f"{address} is not a homeserver's client API: {answer.said} for /_matrix/client/versions",
            "correct homeserver.address; behind a reverse proxy, let /_matrix through",
        )
    return ok("homeserver", f"{address} answers, Matrix {plain(str(versions[-1]))[:_LONGEST]}")


def judge_registration(answer: Answer, sender: str, path: str) -> Check:
    """Take the answer of `/account/whoami` to the as_token, and the user it should name."""
    step = "registration"
    again = _REGISTER_AGAIN.format(path=path)
    if answer.status == 401:
        return failed(step, "the homeserver does not know the as_token", again)
    found = _text(answer.body, "user_id")
    if answer.status != 200 or not found:
        return failed(step, f"the homeserver did not say whose the as_token is: {answer.said}", again)
    found = plain(found)[:_LONGEST]
    if found == sender:
        return ok(step, f"known to the homeserver, as {sender}")
    text = f"to the homeserver the as_token is that of {found}, here it is that of {sender}"
    localpart, _, domain = found.partition(":")
    own_localpart, _, own_domain = sender.partition(":")
    if domain != own_domain and localpart == own_localpart:
        return failed(step, text, f"set homeserver.domain to {domain}, or homeserver.address to where {own_domain} is")
    return failed(step, text, f"the homeserver has another registration with this token: {again}")


def judge_ping(answer: Answer, listening: Listening, arrived: bool, url: str, features: Answer) -> Check:
    """
    Take the answer of the homeserver that was asked to reach the service (MSC2659), and who listens on the port.

    `arrived` tells whether the ping reached `doctor`, where it listens itself.
    """
    step = "ping"
    where = f"`url` in the registration, which the homeserver has read at its start (appservice.address: {url})"
    if answer.status == 200:
        if listening is Listening.SERVICE:
            return ok(step, "the homeserver reaches the running service")
        if arrived:
            return ok(step, "the homeserver reaches the service's port; the service itself is not running")
        return failed(
            step,
            "the homeserver reaches something, but not the port of this configuration",
            f"correct {where}; if the service runs on another machine or in a container, run doctor there",
        )
    if answer.status == 404 and not _has_ping(features):
        return skipped(step, "the homeserver does not offer it (MSC2659, Matrix 1.7)")
    if answer.errcode == "M_URL_NOT_SET":
        return failed(step, "the registration has no `url`, so nothing is sent to the service", "set `url`, restart it")
    if answer.errcode == "M_CONNECTION_TIMEOUT" or (answer.status is None and answer.problem == "time-out"):
        return failed(
            step,
            "the homeserver got no answer in time",
            f"see whether a firewall is between them, and correct {where}",
        )
    if answer.status == 403:
        return failed(
            step,
            f"the homeserver knows the registration by another `id`: {answer.said}",
            "make the homeserver's copy of the registration the same, and restart it",
        )
    if answer.errcode == "M_BAD_STATUS":
        return _judge_status(answer, where)
    if answer.errcode == "M_CONNECTION_FAILED":
        return failed(
            step,
            f"the homeserver does not reach the service: {answer.said}",
            f"correct {where}, and appservice.hostname: 127.0.0.1 is not reached from another machine or container",
        )
    return failed(step, f"the homeserver did not try it: {answer.said}", "see the log of the homeserver")


def _judge_status(answer: Answer, where: str) -> Check:
    status, inner = answer.body.get("status"), _text(answer.body, "body")
    # The words with which the service itself refuses a token.
    if status in (401, 403) and "hs_token" in inner:
        return failed(
            "ping",
            "the homeserver sends another hs_token than the registration here has",
            "make the homeserver's copy of the registration the same, and restart it; restart the service too",
        )
    return failed(
        "ping",
        f"the homeserver reaches another program, or a proxy that does not lead here: it answered {status}",
        f"correct {where}",
    )


def judge_port(listening: Listening, port: int, owner: str | None) -> Check | None:
    """Take who answers on the service's own port; None if nothing is wrong with it."""
    if listening is Listening.OTHER_PROGRAM:
        return failed(
            "ping",
            f"port {port} is in use by another program{f', {owner}' if owner else ''}",
            "end that program, or choose another port with appservice.port and in the registration's `url`",
        )
    if listening is Listening.OTHER_REGISTRATION:
        return failed(
            "ping",
            f"the service on port {port} does not take the registration's hs_token",
            "restart it, so that it reads the registration again",
        )
    return None


def judge_delayed_events(answer: Answer) -> Check:
    """Take the answer of `/_matrix/client/versions`: without delayed events the device takes no part in calls."""
    features = answer.body.get("unstable_features")
    if isinstance(features, dict) and features.get("org.matrix.msc4140") is True:
        return ok("delayed_events", "on (MSC4140): what the device says in calls ends with the service")
    return skipped(
        "delayed_events",
        "the homeserver has none (MSC4140), so the device takes no part in calls; it reads all the same."
        " In Synapse, set max_event_delay_duration",
    )


def _has_ping(features: Answer) -> bool:
    flags = features.body.get("unstable_features")
    return isinstance(flags, dict) and any(flags.get(flag) is True for flag in _PING_FLAGS)


# --- what reaches the service ----------------------------------------------------------------------


def judge_to_device(*, arrived: bool, extensions: bool, refused: bool, listening: Listening) -> Check:
    """
    Take whether a to-device message to a device of the service's own came with the transactions, and the extensions.

    Extensions (MSC3202) can be seen where `doctor` listens itself; that they were not proves nothing. `refused` tells
    that the homeserver sent what had waited for the service, which `doctor` leaves to it.
    """
    if arrived and listening is Listening.HERE:
        more = "; so do device lists (MSC3202)" if extensions else ""
        return ok("to_device", f"to-device messages come with the transactions{more}")
    if arrived:
        return ok("to_device", "to-device messages come with the transactions and are stored")
    if refused and listening is Listening.HERE:
        return skipped(
            "to_device",
            "cannot be told: the homeserver first sends what waited for the service; start it, then try again",
        )
    return failed(
        "to_device",
        "no to-device message came with the transactions",
        "set experimental_features.msc2409_to_device_messages_enabled: true in homeserver.yaml, keep receive_ephemeral:"
        " true in its copy of the registration, restart it. If it was down, it begins with the next room event",
    )


# --- PostHog ---------------------------------------------------------------------------------------


def judge_posthog(host: str, answer: Answer) -> Check:
    """Take the answer of PostHog's `/flags`, which looks up the project's key."""
    step = "posthog"
    if answer.status == 200 and ("flags" in answer.body or "featureFlags" in answer.body):
        return ok(step, f"{host} takes the key")
    if answer.status in (401, 403):
        return failed(
            step, f"{host} refuses the key", "set posthog.api_key to the project's key (phc_…), and host to its region"
        )
    if answer.status is None:
        return failed(
            step, f"{host} does not answer: {answer.problem}", "correct posthog.host, or let the service reach it"
        )
    if answer.status == 404:
        return skipped(step, f"cannot be told: {host} has no /flags; see whether events arrive")
    return failed(
        step, f"{host} does not answer as PostHog: {answer.said}", "correct posthog.host: where events are sent"
    )


# --- the service's own device ----------------------------------------------------------------------


class DeviceFacts(Struct, frozen=True, kw_only=True):
    """What the homeserver says of the service's own device."""

    known: bool  #: it lists keys of it
    same: bool = False  #: they are those in the database
    cross_signed: bool | None = None  #: every signature checked, up to the master key
    one_time_keys: int = 0
    unused_fallback_key: bool | None = None


def judge_device(device_id: str, facts: DeviceFacts) -> Check:
    """Take what the homeserver says of the device whose keys are in the database."""
    step = "device"
    if not facts.known:
        return failed(
            step, f"the homeserver has no keys of {device_id}", "restart the service: it publishes them at start"
        )
    if not facts.same:
        return failed(
            step,
            f"the homeserver has other keys of {device_id} than the database",
            "two installations use one device, or the database is not that of this one: give each its own homeserver"
            " and database",
        )
    if not facts.cross_signed:
        return failed(
            step,
            f"{device_id} is not signed by its user: clients that exclude unsigned devices do not share with it",
            "restart the service: it signs the device at start",
        )
    if not facts.one_time_keys and not facts.unused_fallback_key:
        return failed(
            step,
            f"{device_id} has no one-time key left on the homeserver, so nobody can write to it",
            "start the service: it uploads new ones",
        )
    spare = "a fallback key" if facts.unused_fallback_key else "its fallback key used"
    return ok(step, f"{device_id} is known, its keys equal, cross-signed; {facts.one_time_keys} one-time keys, {spare}")


def judge_round_trip(*, opened: bool | None, listening: Listening) -> Check:
    """Take whether a message sealed for the device was opened: by the running service, or else by `doctor`."""
    if opened is None:
        return skipped("round_trip", "cannot be told: too much waits for the device; start the service, then try again")
    if opened and listening is Listening.SERVICE:
        return ok("round_trip", "the running service opened a message that was sealed for its device")
    if opened:
        return ok("round_trip", "a message sealed for the device can be opened; the service will open it when it runs")
    if listening is Listening.SERVICE:
        return failed(
            "round_trip",
            "the running service did not open a message that was sealed for its device",
            "see its log; restart it",
        )
    return failed(
        "round_trip",
        "a message sealed for the device did not come, or cannot be opened with the keys in the database",
        "see whether the database is the one the device was made with",
    )


def _text(source: Mapping[str, Any], name: str) -> str:
    found = source.get(name)
    return found if isinstance(found, str) else ""


def one_line(text: str) -> str:
    """Give a text of several lines as one, without what a terminal would obey."""
    first, *rest = (plain(line.strip()) for line in text.strip().splitlines() or [""])
    return " ".join((first, "; ".join(rest))).strip()
