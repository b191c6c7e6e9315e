"""
The configuration: a YAML file and the environment become one frozen `Config`, or one error that names every fault.

Section and key names follow mautrix where it has them. The file is only ever read. Any key can be set from the
environment as `RTC_APPSERVICE_SECTION__KEY`, which wins over the file; a secret can be named as a file (`…_file`).
"""

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationInfo
from pydantic import field_validator as check
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from rtc_appservice.core.model import Settings
from rtc_appservice.files import PLACEHOLDER

ENV_PREFIX = "RTC_APPSERVICE_"
ENV_DELIMITER = "__"

#: HMAC-SHA-256 keys shorter than this would be easier to guess than a media key (16 bytes).
SECRET_MIN_BYTES = 16


#: The database of nobody, in the file that `rtc-appservice config` writes.
_EXAMPLE_URL = "postgresql://user:password@host/name"

#: Addresses that stand for all of the machine, and those that only the machine itself reaches.
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


def _http_url(value: str) -> str:
    """Give the URL back without a slash at its end; ValueError if it is not http or https with a host."""
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("must be a URL that starts with http:// or https://, such as http://localhost:8008")
    return value.rstrip("/")


def _postgres_url(value: SecretStr) -> SecretStr:
    """Give the URL back; ValueError, without any of the URL, if PostgreSQL would not take it or take it otherwise."""
    url = value.get_secret_value()
    if not url.startswith(("postgres://", "postgresql://")):
        raise ValueError("must be a URL that starts with postgresql://, such as postgresql://user:password@host/name")
    if url == _EXAMPLE_URL:
        raise ValueError("is the example; put user, password, host and name of your database")
    if not _is_in_parts(url):
        raise ValueError(
            "cannot be taken apart into user, password, host, port and name; "
            "percent-encode special characters of user and password (# as %23, / as %2F, ? as %3F, @ as %40)"
        )
    return value


def _is_in_parts(url: str) -> bool:
    """Tell whether a URL has its parts where they belong: no sign of a password ended one of them early."""
    try:
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        ports = [urlsplit(f"//{host}").port for host in hosts.split(",")]
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:  # its text quotes what it could not read
        return False
    return 0 not in ports and "#" not in url and "@" not in login + parts.path + parts.query


def _contents(path: object) -> SecretStr:
    """Read a secret from the file that a key names; surrounding whitespace is not part of it."""
    if not isinstance(path, str | Path):
        raise ValueError("must be the path of a file")
    try:
        text = Path(path).read_text().strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ValueError(f"file {path} cannot be read ({reason}); name one that the service may read") from error
    if not text:
        raise ValueError(f"file {path} is empty; write the secret into it")
    return SecretStr(text)


def _long_enough(value: SecretStr) -> SecretStr:
    """Give the secret back; ValueError if it is nobody's, or too short to key anything with."""
    if value.get_secret_value().startswith(PLACEHOLDER):
        raise ValueError("is still a placeholder; `rtc-appservice config` makes a fresh one")
    if len(value.get_secret_value().encode()) < SECRET_MIN_BYTES:
        raise ValueError(f"must have at least {SECRET_MIN_BYTES} bytes; `rtc-appservice config` makes a fresh one")
    return value


def _unguessable(value: SecretStr) -> SecretStr:
    """Give the token back; ValueError if it could be guessed, or cannot stand in a header."""
    token = value.get_secret_value()
    if token.startswith(PLACEHOLDER):
        raise ValueError("is still a placeholder; put a token of your own")
    if len(token) < SECRET_MIN_BYTES or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"must have at least {SECRET_MIN_BYTES} characters, ASCII without spaces")
    return value


def _project_key(value: SecretStr) -> SecretStr:
    """Give the key of a PostHog project back; ValueError if it is the example, or cannot be one."""
    key = value.get_secret_value()
    if not key.isascii() or not key.isprintable() or " " in key or key.startswith(PLACEHOLDER):
        raise ValueError("is no key of a PostHog project; copy yours from the project's settings")
    return value


def _listed(value: Any) -> Any:
    """Give the list that a text of the environment means, as JSON or with commas; other values unchanged."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [item for item in re.split(r"[\s,]+", value) if item]
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError('must be a list, as in ["a", "b"] or a, b') from error


def _only_one(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Give the secret from a file back; ValueError if the key is also given directly."""
    direct = str(info.field_name).removesuffix("_file")
    if value is not None and info.data.get(direct) is not None:
        raise ValueError(f"is given, and `{direct}` too; keep one of them")
    return value


def _reveal(secret: SecretStr | None) -> str | None:
    return secret.get_secret_value() if secret else None


HttpUrl = Annotated[str, AfterValidator(_http_url)]
PostgresUrl = Annotated[SecretStr, AfterValidator(_postgres_url)]
DeploymentSecret = Annotated[SecretStr, AfterValidator(_long_enough)]
Token = Annotated[SecretStr, AfterValidator(_unguessable)]
ProjectKey = Annotated[SecretStr, AfterValidator(_project_key)]
Names = Annotated[list[str], NoDecode, BeforeValidator(_listed)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=3600)]
FromFile = BeforeValidator(_contents)


class Section(BaseModel):
    """One section of the file: immutable, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Homeserver(Section):
    """The homeserver that hands us its transactions."""

    address: HttpUrl = Field(
        examples=[f"http://{PLACEHOLDER}:8008"],
        description="Where we reach its client API, such as http://localhost:8008.",
    )
    domain: str = Field(
        examples=[PLACEHOLDER],
        description="Its server name: what follows the colon in its user ids, such as example.org.",
    )

    @check("domain")
    @classmethod
    def _is_a_server_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9.:\[\]-]+", value):
            raise ValueError("must be a server name such as example.org, without https:// and without a path")
        return value

    @check("address", "domain")
    @classmethod
    def _is_filled_in(cls, value: str, info: ValidationInfo) -> str:
        if PLACEHOLDER in value:
            variable = f"{ENV_PREFIX}HOMESERVER{ENV_DELIMITER}{str(info.field_name).upper()}"
            raise ValueError(
                f"is still the placeholder of a new configuration; put your homeserver's, in the file or as {variable}"
            )
        return value


class Appservice(Section):
    """The listener that the homeserver sends to."""

    address: HttpUrl = Field(
        "http://localhost:29331", description="Where the homeserver reaches us; goes into the registration."
    )
    hostname: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: Port = Field(29331, description="Port to listen on.")
    max_body_bytes: int = Field(
        64 * 1024 * 1024, ge=1024 * 1024, description="Largest transaction taken; Synapse can send some 13 MB."
    )
    registration: Path = Field(
        Path("registration.yaml"),
        description="The registration file: the one source of id, tokens, sender and namespaces.",
    )


class Auditor(Section):
    """The service's own device, which reads encrypted rooms it is invited into; needs the extra `encryption`."""

    enabled: bool = Field(False, description="Whether to have a device.")
    invited_by: Names = Field(
        [],
        description='Users and whole servers whose invitations it follows, as in ["example.org", "@ann:example.com"]; '
        "it enters no other rooms by itself.",
    )
    rooms: Names = Field([], description="Rooms to enter at start, by id or alias.")
    notice: str = Field(
        "This room is audited: a device of the homeserver's operator records when media keys of calls are handed out, "
        "by whom and how. It keeps no key, no message and no media.",
        description="What it posts when it enters a room; empty: nothing.",
    )
    witness_notice: str = Field(
        "The auditor takes part in this call, to see whether media keys reach a device. It is sent them like every "
        "member, keeps none, and neither sends nor receives media.",
        description="What it posts when it joins a call, where moderators asked it to; empty: nothing.",
    )


class Database(Section):
    """Where the facts are kept."""

    url: PostgresUrl | None = Field(
        None, examples=[_EXAMPLE_URL], description="Without it, PostgreSQL is started by us."
    )
    url_file: Annotated[PostgresUrl, FromFile] | None = Field(None, description="A file that holds the URL instead.")
    embedded_path: Path = Field(Path("postgresql"), description="Folder of the PostgreSQL that we start ourselves.")
    pool_size: int = Field(8, ge=2, le=100, description="Connections held open.")

    only_one = check("url_file")(_only_one)

    @property
    def dsn(self) -> str | None:
        """Give the URL, wherever it came from; None: start PostgreSQL ourselves."""
        return _reveal(self.url or self.url_file)


class Metrics(Section):
    """The admin listener: the web pages, /metrics, /live and /ready."""

    enabled: bool = Field(True, description="Whether to listen.")
    hostname: str = Field("127.0.0.1", description="Address to listen on; never one that the internet reaches.")
    listen_port: Port = Field(29332, description="Port to listen on.")
    token: Token | None = Field(
        None,
        examples=["…"],
        description="Bearer token, or the password for a browser, that shows the web pages with the ids of users and "
        "rooms. Without it they are shown on loopback only.",
    )
    token_file: Annotated[Token, FromFile] | None = Field(None, description="A file that holds the token instead.")

    only_one = check("token_file")(_only_one)

    @property
    def page_token(self) -> str | None:
        """Give the token, wherever it came from."""
        return _reveal(self.token or self.token_file)


class Posthog(Section):
    """PostHog: off, without any connection, until a key is given."""

    api_key: ProjectKey | None = Field(None, examples=["phc_…"], description="The project's key.")
    api_key_file: Annotated[ProjectKey, FromFile] | None = Field(None, description="A file that holds the key instead.")
    host: HttpUrl | None = Field(
        None,
        validate_default=True,
        examples=["https://eu.i.posthog.com"],
        description="Where to send; needed with a key.",
    )
    sample_rate: float = Field(
        1.0, ge=0, le=1, description="Share of the calls whose `RtcKeyDistributed` events are sent."
    )
    pseudonym_rotation_days: int | None = Field(
        None,
        ge=1,
        le=3650,
        examples=[28],
        description="Days after which rooms, users and devices get new pseudonyms; without it, never.",
    )

    only_one = check("api_key_file")(_only_one)

    @property
    def key(self) -> str | None:
        """Give the key, wherever it came from; None: PostHog is off."""
        return _reveal(self.api_key or self.api_key_file)

    @check("host")
    @classmethod
    def _host_with_key(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and (info.data.get("api_key") or info.data.get("api_key_file")):
            raise ValueError("is missing: a key is given, so say where to send, such as https://eu.i.posthog.com")
        return value


class Notifications(Section):
    """Notices to an operator's room in Matrix: off until a room is given."""

    room_id: str | None = Field(
        None,
        examples=['"!abc:example.org"'],
        description="Room, by id or alias in quotes, that split calls are posted to while they go on. Use an "
        "unencrypted room of your own, since users, devices and rooms stand in clear there, and invite the sender of "
        "the registration.",
    )
    weekly: bool = Field(False, description="Whether a summary of readiness is posted there too, once a week.")

    @check("room_id")
    @classmethod
    def _a_room(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("!", "#")):
            raise ValueError("must be a room id (!…) or an alias (#…)")
        return value

    @check("weekly")
    @classmethod
    def _weekly_with_room(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("room_id", value) is None:
            raise ValueError("needs room_id: say where to post")
        return value


class Detection(Section):
    """What counts as late, as missing and as over."""

    grace_seconds: Seconds = Field(
        Settings().grace_seconds, description="A key is on time when it comes this soon after the moment that owes it."
    )
    horizon_seconds: Seconds = Field(
        Settings().horizon_seconds, description="A key that has not come by then did not come."
    )
    late_seconds: Seconds = Field(
        Settings().late_seconds, description="How far behind the stream an arrival counts as late."
    )
    comparison_tags: bool = Field(
        True, description="Keep a short keyed tag of each media key, to tell whether two are the same; never the key."
    )

    @check("horizon_seconds")
    @classmethod
    def _after_grace(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("grace_seconds", 0):
            raise ValueError(f"must not be less than detection.grace_seconds, {info.data['grace_seconds']:g}")
        return value

    def settings(self) -> Settings:
        """Give the values as detection takes them."""
        return Settings(
            grace_seconds=self.grace_seconds, horizon_seconds=self.horizon_seconds, late_seconds=self.late_seconds
        )


class Logging(Section):
    """What is written to stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="DEBUG names users and rooms.")
    format: Literal["json", "console"] = Field("json", description="console is for people.")


class Config(BaseSettings):
    """The whole configuration, valid as it stands."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix=ENV_PREFIX,
        env_nested_delimiter=ENV_DELIMITER,
        env_ignore_empty=True,
    )

    secret: DeploymentSecret | None = Field(
        None,
        description="Keys the comparison tags, the hashes of to-device messages and the pseudonyms in PostHog. "
        "Keep it: with another one they no longer compare.",
    )
    secret_file: Annotated[DeploymentSecret, FromFile] | None = Field(
        None, validate_default=True, description="A file that holds the secret instead."
    )
    homeserver: Homeserver
    appservice: Appservice = Appservice()
    auditor: Auditor = Auditor()
    database: Database = Database()
    metrics: Metrics = Metrics()
    posthog: Posthog = Posthog()
    notifications: Notifications = Notifications()
    detection: Detection = Detection()
    logging: Logging = Logging()

    only_one = check("secret_file")(_only_one)

    @check("secret_file")
    @classmethod
    def _some_secret(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None and info.data.get("secret", value) is None and "secret" in info.data:
            raise ValueError("is missing, and so is `secret`; `rtc-appservice config` makes a fresh one")
        return value

    @check("metrics")
    @classmethod
    def _ports_differ(cls, value: Metrics, info: ValidationInfo) -> Metrics:
        other = info.data.get("appservice")
        if value.enabled and isinstance(other, Appservice) and value.listen_port == other.port:
            addresses = {value.hostname, other.hostname}
            at_home = "localhost" in addresses and addresses <= _LOOPBACK
            if len(addresses) == 1 or at_home or not addresses.isdisjoint(_EVERYWHERE):
                raise ValueError(
                    f"listen_port is {value.listen_port}, and so is appservice.port, on the same address; choose "
                    "another for metrics.listen_port or for appservice.port"
                )
        return value

    @property
    def deployment_secret(self) -> bytes:
        """Give the secret that everything keyed is keyed with."""
        return (_reveal(self.secret or self.secret_file) or "").encode()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file, and read nothing else."""
        return env_settings, init_settings
