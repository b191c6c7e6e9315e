"""
The registration: what the homeserver must know of the service.

`render` writes one for a scope; `load` reads the one in use and tells what it lets the service see.
"""

import re
import secrets
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from rtc_appservice.errors import ConfigError
from rtc_appservice.files import PLACEHOLDER, read_yaml

#: Localpart of the service's own user, and beginning of those of the users it may create.
SENDER_LOCALPART = "rtc-auditor"

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


_OTHERS = """\

# The other two scopes; `rtc-appservice registration --scope ...` writes either.
#
# Scope `users`: the second entry of `users` names everybody,
#     - exclusive: false
#       regex: {everybody}
{users}
#
# Scope `rooms`: that entry is left out, and instead
#   rooms: {rooms}
{rooms_sees}
"""

#: Room ids of room version 12 have no server part, so no more than the sigil can be asked for.
_ALL_ROOMS = '[{exclusive: false, regex: "!.*"}]'

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
    #: Where the homeserver reaches the service; None: nowhere, and nothing is sent.
    url: str | None
    #: Regular expressions of users other than our own whose to-device envelopes come with the transactions.
    users: tuple[str, ...]
    #: Regular expressions of the rooms whose events come, whoever is in them.
    rooms: tuple[str, ...]
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

    def doubts(self, *, domain: str, port: int) -> list[str]:
        """Give what may be meant and probably is not, in words: `domain` is the homeserver's, `port` ours."""
        doubts = []
        if self.url is None:
            doubts.append("url: is null, so the homeserver sends nothing; put appservice.address")
        elif (reached := _port(self.url)) != port:
            doubts.append(
                f"url: has port {reached}, and appservice.port is {port}; make them the same, unless a proxy stands"
                " between"
            )
        if not self.users and not self.rooms:
            doubts.append(
                "namespaces: name neither rooms nor users but the service's own, so it is shown nothing of others;"
                " `rtc-appservice registration --scope` writes them"
            )
        if self.users and not any(domain in regex.replace("\\", "") for regex in self.users):
            doubts.append(
                f"namespaces.users: none names {domain}, the homeserver.domain; is it for another homeserver?"
            )
        if self.users and not self.to_device:
            doubts.append("receive_ephemeral: is off, so no to-device messages come; set it to true")
        return doubts

    @property
    def shown(self) -> str:
        """What the service is shown, in words."""
        if self.envelopes:
            return "to-device envelopes are shown"
        if self.users or self.rooms:
            return "room events are shown, to-device envelopes are not"
        return "only rooms of the service's own users are shown"


def _port(url: str) -> int:
    parts = urlsplit(url)
    return parts.port or (443 if parts.scheme == "https" else 80)


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
        regex = pilot_regex if pilot_regex is not None else _everybody(domain)
        _compile(regex)
        users = _USERS.format(regex=_quoted(regex))
    return _TEMPLATE.format(
        scope=scope.value,
        sees=_comment(_SEES[scope]),
        url=_quoted(url),
        as_token=as_token or secrets.token_urlsafe(32),
        hs_token=hs_token or secrets.token_urlsafe(32),
        sender=SENDER_LOCALPART,
        own=_quoted(f"@{SENDER_LOCALPART}.*:{own_domain}$"),
        users=users,
        rooms=_ALL_ROOMS if scope is Scope.ROOMS else "[]",
    )


def render_sample() -> str:
    """
    Give the sample that stands beside the sources, with placeholders that `run` refuses.

    It has the recommended scope, and explains the two others.
    """
    recommended = render(
        Scope.PILOT,
        domain="example.org",
        url="http://localhost:29331",
        pilot_regex=r"@(ann|bob|carol):example\.org$",
        as_token=f"{PLACEHOLDER}-with-a-random-as-token",
        hs_token=f"{PLACEHOLDER}-with-a-random-hs-token",
    )
    return recommended + _OTHERS.format(
        everybody=_quoted(_everybody("example.org")),
        users=_comment(_SEES[Scope.USERS]),
        rooms=_ALL_ROOMS,
        rooms_sees=_comment(_SEES[Scope.ROOMS]),
    )


def _everybody(domain: str) -> str:
    return f"@.*:{re.escape(domain)}$"


def _comment(text: str) -> str:
    return "\n".join(f"# {line}" for line in text.splitlines())


def load(path: Path) -> Registration:
    """
    Read a registration.

    Raises:
        ConfigError: with every fault of its form, each on its own line beginning with the key. Never with a token.
    """
    content = read_yaml(path, command="registration")
    faults = [f"{key}: is missing" for key in _TEXTS if content.get(key) in (None, "")]
    faults += [
        f"{key}: must be text; put it in quotes" for key in _TEXTS if not isinstance(content.get(key, ""), str | None)
    ]
    url = content.get("url")
    if "url" not in content:
        faults.append("url: is missing; it is where the homeserver reaches the service, appservice.address")
    elif url is not None and not _is_http(url):
        faults.append("url: must be a URL that starts with http:// or https://, such as http://localhost:29331")
    namespaces = content.get("namespaces")
    users: list[str] = []
    rooms: list[str] = []
    if isinstance(namespaces, dict):
        users = _regexes(namespaces.get("users"), "namespaces.users", faults)
        rooms = _regexes(namespaces.get("rooms"), "namespaces.rooms", faults)
    else:
        faults.append("namespaces: is missing; it says which users and rooms the service is shown")
    if faults:
        raise ConfigError(
            "\n".join(
                [
                    f"{path} cannot be used as a registration; `rtc-appservice registration` writes one that can:",
                    *(f"  {fault}" for fault in faults),
                ]
            )
        )
    return Registration(
        **{key: content[key] for key in _TEXTS},
        url=url,
        users=tuple(regex for regex in users if not regex.startswith(f"@{content['sender_localpart']}")),
        rooms=tuple(rooms),
        to_device=bool(content.get("receive_ephemeral") or content.get("de.sorunome.msc2409.push_ephemeral")),
    )


def _is_http(url: object) -> bool:
    """Tell whether this is a URL with a host, and with a port that can be one."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else None
        return parts is not None and parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _regexes(entries: Any, key: str, faults: list[str]) -> list[str]:
    """Give the regular expressions of a namespace; what is wrong with it is added to the faults."""
    if not isinstance(entries or [], list):
        faults.append(f"{key}: must be a list")
        return []
    found = []
    for index, entry in enumerate(entries or []):
        regex = entry.get("regex") if isinstance(entry, dict) else None
        if not isinstance(regex, str):
            faults.append(f"{key}.{index}.regex: is missing")
            continue
        try:
            _compile(regex)
        except ConfigError as error:
            faults.append(f"{key}.{index}.regex: {error}")
        found.append(regex)
    return found


def load_usable(path: Path) -> Registration:
    """Read a registration to run with; raises ConfigError as `load` does, and with every reason not to."""
    registered = load(path)
    if faults := registered.faults():
        raise ConfigError("\n".join([f"{path} cannot be used:", *(f"  {fault}" for fault in faults)]))
    return registered


def _compile(regex: str) -> None:
    try:
        re.compile(regex)
    except re.error as error:
        raise ConfigError(f"{regex} is not a regular expression: {error}") from error


def _quoted(text: str) -> str:
    """Give a YAML scalar in single quotes, in which a backslash stands for itself."""
    return "'" + text.replace("'", "''") + "'"
