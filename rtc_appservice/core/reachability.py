"""
What a homeserver's answers mean for `doctor`: does it know the service, and does what it sends reach it?

What homeservers answer was seen of Synapse 1.163.
"""

from collections.abc import Mapping
from typing import Any

from rtc_appservice.core.installation import (
    LONGEST,
    Answer,
    Check,
    Listening,
    failed,
    ok,
    skipped,
    text_of,
)
from rtc_appservice.core.wording import plain

#: How a homeserver says that it has the ping (MSC2659, Matrix 1.7).
_PING_FLAGS = ("fi.mau.msc2659", "fi.mau.msc2659.stable")
_REGISTER_AGAIN = (
    "name {path} in app_service_config_files of homeserver.yaml and restart the homeserver; if it has a copy, make it"
    " the same"
)


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
    return ok("homeserver", f"{address} answers, Matrix {plain(str(versions[-1]))[:LONGEST]}")


def judge_registration(answer: Answer, sender: str, path: str) -> Check:
    """Take the answer of `/account/whoami` to the as_token, and the user it should name."""
    step = "registration"
    again = _REGISTER_AGAIN.format(path=path)
    if answer.status == 401:
        return failed(step, "the homeserver does not know the as_token", again)
    found = text_of(answer.body, "user_id")
    if answer.status != 200 or not found:
        return failed(step, f"the homeserver did not say whose the as_token is: {answer.said}", again)
    found = plain(found)[:LONGEST]
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
    status, inner = answer.body.get("status"), text_of(answer.body, "body")
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
        more = "so do device lists (MSC3202)" if extensions else "device lists (MSC3202) were not seen"
        return ok("to_device", f"to-device messages come with the transactions; {more}")
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
        " true in its copy of the registration, and restart it. If the service was down until now, try again after the"
        " next room event: Synapse may send nothing before",
    )


# --- notices -----------------------------------------------------------------------------------


def judge_notifications(room: str, sender: str, summary: Answer, encryption: Answer, levels: Answer) -> Check:
    """
    Take what the homeserver tells the registration's sender of the room for notices.

    That is the room's summary (Matrix 1.15), and the content of `m.room.encryption` and `m.room.power_levels`, which
    only a member is given.
    """
    step, room = "notifications", plain(room)[:LONGEST]
    if summary.status == 404 and summary.errcode == "M_UNRECOGNIZED":
        return skipped(step, "cannot be told: the homeserver has no room summaries (Matrix 1.15)")
    if summary.status not in (200, 400, 403, 404):
        return failed(step, f"the homeserver did not tell of {room}: {summary.said}", "see the log of the homeserver")
    if summary.status != 200:
        text = f"{room} is not there, or not for {sender} to see: {summary.said}"
        return failed(step, text, f"correct notifications.room_id, and invite {sender} to the room")
    membership = text_of(summary.body, "membership")
    is_open = summary.body.get("join_rule") == "public" and membership != "ban"
    if membership not in ("join", "invite") and not is_open:
        return failed(step, f"{sender} is neither in {room} nor invited", f"invite {sender} to the room")
    is_member = membership == "join"
    if encryption.status == 200 if is_member else summary.body.get("encryption"):
        text = f"{room} is encrypted, and the service posts in clear only"
        return failed(step, text, "give an unencrypted room in notifications.room_id")
    if not is_member:
        return ok(step, f"{sender} may enter {room}, and does with the first notice")
    own = _power(levels.body, "users", sender, "users_default")
    needed = _power(levels.body, "events", "m.room.message", "events_default")
    if own < needed:
        text = f"{sender} may not post in {room}: its power level there is {own}, and {needed} is needed"
        return failed(step, text, "give it that power level in the room")
    return ok(step, f"{sender} is in {room} and may post there")


def _power(levels: Mapping[str, Any], table: str, name: str, default: str) -> int:
    """Give a power level of a room; where it is not a number, or there are none at all, it is 0."""
    given = levels.get(table)
    found = given.get(name) if isinstance(given, dict) and name in given else levels.get(default)
    return found if type(found) is int else 0
