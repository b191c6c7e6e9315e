"""
The registration: what the homeserver must know of the service.

`render` writes one for a scope; `load` reads the one in use and tells what it lets the service see.
"""

import re
import secrets
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from rtc_appservice.errors import ConfigError
from rtc_appservice.files import read_yaml

#: Localpart of the service's own user, and beginning of those of the users it may create.
SENDER_LOCALPART = "rtc-auditor"

#: How the tokens of the sample begin; `run` refuses them.
PLACEHOLDER = "replace-me"

#: Shorter tokens could be guessed; what `render` writes has 43 characters.
TOKEN_MIN_LENGTH = 20


class Scope(StrEnum):
    """How much of the homeserver the service is shown."""

    ROOMS = "rooms"
    USERS = "users"
    PILOT = "pilot"


_SEES = {
    Scope.ROOMS: """\
Sees   the events of every room: call memberships, key events in clear, envelopes of encrypted events.
       No to-device envelopes: whether a key came by to-device cannot be told, so calls without room keys are `unknown`.
Costs  all events, typing notices and receipts of the homeserver are sent to the service, which passes over nearly all.
       The token acts for nobody but the service's own users.""",
    Scope.USERS: """\
Sees   the events of every room with a local user, and the Olm envelopes of all to-device messages to local users:
       sender, recipient device, type and length; the content stays sealed.
Costs  all events, typing notices and receipts of the homeserver are sent to the service, which passes over nearly all.
WARNING: the token can act as every local user. The service never does, but whoever steals the token could.
       Keep this file readable by the homeserver and the service alone. Prefer the scope `pilot` where it is enough.""",
    Scope.PILOT: """\
Sees   the events of the rooms that a user of the group is in, and the Olm envelopes of all to-device messages to users
       of the group: sender, recipient device, type and length; the content stays sealed.
Costs  the traffic of the group only; keys to people outside the group are not seen, and nothing is concluded from that.
WARNING: the token can act as every user of the group. The service never does, but whoever steals the token could.
       Keep this file readable by the homeserver and the service alone.""",
}

_TEMPLATE = """\
# Registration of rtc-appservice with a homeserver, scope `{scope}`.
#
{sees}
#
# Synapse needs in homeserver.yaml, and then a restart:
#   app_service_config_files: [/path/to/this/file]
#   experimental_features:
#     msc2409_to_device_messages_enabled: true   # to-device messages at all
#     msc3202_transaction_extensions: true       # one-time-key counts and device lists
id: rtc-appservice
url: {url}
as_token: {as_token}
hs_token: {hs_token}
sender_localpart: {sender}
rate_limited: false
namespaces:
  users:
    # the users that the service itself creates
    - exclusive: true
      regex: {own}
{users}  aliases: []
  rooms: {rooms}
# To-device messages come only with these; typing notices and receipts come along and are passed over.
receive_ephemeral: true
de.sorunome.msc2409.push_ephemeral: true
# One-time-key counts and device lists.
org.matrix.msc3202: true
# Devices of our own users are created without a login.
io.element.msc4190: true
"""


_USERS = """\
    # the users whose rooms and to-device envelopes are shown
    - exclusive: false
      regex: {regex}
"""

_TEXTS = ("id", "as_token", "hs_token", "sender_localpart")


class Registration(Struct, frozen=True, kw_only=True):
    """A registration as the service uses it."""

    id: str
    as_token: str
    hs_token: str
    sender_localpart: str
    #: Regular expressions of users other than our own whose to-device envelopes come with the transactions.
    users: tuple[str, ...]
    #: Whether the homeserver was asked for to-device messages at all.
    to_device: bool

    @property
    def envelopes(self) -> bool:
        """Tell whether Olm envelopes between other users are shown, so that their silence can be read."""
        return self.to_device and bool(self.users)

    def covers(self, user_id: str) -> bool:
        """Tell whether to-device envelopes to this user are shown."""
        return self.to_device and any(re.match(regex, user_id) for regex in self.users)

    def faults(self) -> list[str]:
        """Give the reasons not to run with this registration, in words; empty if there are none."""
        renew = "write a fresh registration with `rtc-appservice registration` and give it to the homeserver too"
        faults = []
        for name, token in (("as_token", self.as_token), ("hs_token", self.hs_token)):
            if token.startswith(PLACEHOLDER):
                faults.append(f"{name}: is the sample's placeholder; {renew}")
            elif len(token) < TOKEN_MIN_LENGTH:
                faults.append(f"{name}: is shorter than {TOKEN_MIN_LENGTH} characters and could be guessed; {renew}")
        if self.as_token == self.hs_token and not faults:
            faults.append(f"hs_token: is the same as as_token; {renew}")
        return faults


def render(
    scope: Scope,
    *,
    domain: str,
    url: str,
    pilot_regex: str | None = None,
    as_token: str | None = None,
    hs_token: str | None = None,
) -> str:
    """
    Give the text of a registration for a scope; tokens are fresh unless given.

    Raises:
        ConfigError: if `pilot_regex` is missing for the scope `pilot`, given for another, or no regular expression.
    """
    if scope is Scope.PILOT and pilot_regex is None:
        raise ConfigError("The scope `pilot` needs --pilot-regex, its users: for example '@(ann|bob):example\\.org'")
    if scope is not Scope.PILOT and pilot_regex is not None:
        raise ConfigError(f"--pilot-regex belongs to the scope `pilot`; the scope `{scope}` takes none")
    own_domain = re.escape(domain)
    users = ""
    if scope is not Scope.ROOMS:
        regex = pilot_regex if pilot_regex is not None else f"@.*:{own_domain}$"
        _compile(regex)
        users = _USERS.format(regex=_quoted(regex))
    return _TEMPLATE.format(
        scope=scope.value,
        sees="\n".join(f"# {line}" for line in _SEES[scope].splitlines()),
        url=_quoted(url),
        as_token=as_token or secrets.token_urlsafe(32),
        hs_token=hs_token or secrets.token_urlsafe(32),
        sender=SENDER_LOCALPART,
        own=_quoted(f"@{SENDER_LOCALPART}.*:{own_domain}$"),
        users=users,
        # Room ids of room version 12 have no server part, so no more than the sigil can be asked for.
        rooms='[{exclusive: false, regex: "!.*"}]' if scope is Scope.ROOMS else "[]",
    )


def render_sample() -> str:
    """Give the sample that stands beside the sources: the recommended scope, with placeholders that `run` refuses."""
    return render(
        Scope.PILOT,
        domain="example.org",
        url="http://localhost:29331",
        pilot_regex=r"@(ann|bob|carol):example\.org$",
        as_token=f"{PLACEHOLDER}-with-a-random-as-token",
        hs_token=f"{PLACEHOLDER}-with-a-random-hs-token",
    )


def load(path: Path) -> Registration:
    """
    Read a registration.

    Raises:
        ConfigError: with every fault of its form, each on its own line beginning with the key. Never with a token.
    """
    content = read_yaml(path, command="registration")
    faults = [f"{key}: is missing" for key in _TEXTS if not isinstance(content.get(key), str) or not content[key]]
    namespaces = content.get("namespaces")
    users: list[str] = []
    if not isinstance(namespaces, dict):
        faults.append("namespaces: is missing")
    elif not isinstance(namespaces.get("users") or [], list):
        faults.append("namespaces.users: must be a list")
    else:
        for index, entry in enumerate(namespaces.get("users") or []):
            regex = entry.get("regex") if isinstance(entry, dict) else None
            if not isinstance(regex, str):
                faults.append(f"namespaces.users.{index}.regex: is missing")
                continue
            try:
                _compile(regex)
            except ConfigError as error:
                faults.append(f"namespaces.users.{index}.regex: {error}")
            if not regex.startswith(f"@{content.get('sender_localpart')}"):
                users.append(regex)
    if faults:
        raise ConfigError("\n".join([f"{path} cannot be used as a registration:", *(f"  {fault}" for fault in faults)]))
    return Registration(
        **{key: content[key] for key in _TEXTS},
        users=tuple(users),
        to_device=bool(content.get("receive_ephemeral") or content.get("de.sorunome.msc2409.push_ephemeral")),
    )


def _compile(regex: str) -> None:
    try:
        re.compile(regex)
    except re.error as error:
        raise ConfigError(f"{regex} is not a regular expression: {error}") from error


def _quoted(text: str) -> str:
    """Give a YAML scalar in single quotes, in which a backslash stands for itself."""
    return "'" + text.replace("'", "''") + "'"
