"""What `doctor` found of an installation: an answer or a fact in, one line with what to do about it out."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from msgspec import Struct

from rtc_appservice.core.wording import plain

#: Older PostgreSQL lacks what the queries use.
POSTGRESQL_MIN = 15
#: Longest text of another's that is printed.
LONGEST = 200


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
        return text_of(self.body, "errcode")

    @property
    def said(self) -> str:
        """What was answered, in one line fit for a terminal."""
        if self.status is None:
            return self.problem
        words = (f"HTTP {self.status}", self.errcode, plain(text_of(self.body, "error"))[:LONGEST])
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
            "restart the service: it signs the device at start. If its log says that the device could not be set up,"
            " the deployment secret was replaced once before: take a fresh one, and run `rtc-appservice new-device`",
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


def text_of(source: Mapping[str, Any], name: str) -> str:
    """Give a text of an answer, empty if it is none."""
    found = source.get(name)
    return found if isinstance(found, str) else ""


def one_line(text: str) -> str:
    """Give a text of several lines as one, without what a terminal would obey."""
    first, *rest = (plain(line.strip()) for line in text.strip().splitlines() or [""])
    return " ".join((first, "; ".join(rest))).strip()
