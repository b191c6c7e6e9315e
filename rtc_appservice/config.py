"""
The configuration: a YAML file and the environment become one frozen `Config`, or one error that names every fault.

Section and key names follow mautrix where it has them. The file is only ever read. Any key can be set from the
environment as `RTC_APPSERVICE_SECTION__KEY`, which wins over the file; a secret can be named as a file (`…_file`).
"""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo
from pydantic import field_validator as check
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from rtc_appservice.config_values import (
    EXAMPLE_URL,
    DeploymentSecret,
    FromFile,
    HttpUrl,
    Names,
    Port,
    PostgresUrl,
    ProjectKey,
    Seconds,
    Token,
    only_one,
    reveal,
)
from rtc_appservice.core.model import Settings
from rtc_appservice.errors import ConfigError
from rtc_appservice.files import PLACEHOLDER

ENV_PREFIX = "RTC_APPSERVICE_"
ENV_DELIMITER = "__"

#: Addresses that stand for all of the machine, and those that only the machine itself reaches.
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


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

    def require(self) -> None:
        """Raise ConfigError where the device is wanted and what it needs is not installed."""
        if self.enabled and find_spec("olm") is None:
            raise ConfigError("auditor.enabled needs `pip install 'rtc-appservice[encryption]'` (olm is missing)")

    def doubts(self) -> list[str]:
        """Give what may be meant and probably is not, in words."""
        if self.enabled and not self.invited_by and not self.rooms:
            return [
                "auditor.invited_by: is empty, so the device follows no invitation; name users or servers that may"
                " invite it, unless `rtc-appservice room add` alone is to say where it goes"
            ]
        return []


class Database(Section):
    """Where the facts are kept."""

    url: PostgresUrl | None = Field(
        None, examples=[EXAMPLE_URL], description="Without it, PostgreSQL is started by us."
    )
    url_file: Annotated[PostgresUrl, FromFile] | None = Field(None, description="A file that holds the URL instead.")
    embedded_path: Path = Field(Path("postgresql"), description="Folder of the PostgreSQL that we start ourselves.")
    pool_size: int = Field(8, ge=2, le=100, description="Connections held open.")

    _only_one = check("url_file")(only_one)

    @property
    def dsn(self) -> str | None:
        """Give the URL, wherever it came from; None: start PostgreSQL ourselves."""
        return reveal(self.url or self.url_file)


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

    _only_one = check("token_file")(only_one)

    @property
    def page_token(self) -> str | None:
        """Give the token, wherever it came from."""
        return reveal(self.token or self.token_file)


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

    _only_one = check("api_key_file")(only_one)

    @property
    def key(self) -> str | None:
        """Give the key, wherever it came from; None: PostHog is off."""
        return reveal(self.api_key or self.api_key_file)

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
    """What counts as late, as missing and as ready."""

    grace_seconds: Seconds = Field(
        Settings().grace_seconds, description="A key is on time when it comes this soon after the moment that owes it."
    )
    horizon_seconds: Seconds = Field(
        Settings().horizon_seconds, description="A key that has not come by then did not come."
    )
    late_seconds: Seconds = Field(
        Settings().late_seconds, description="How far behind the stream an arrival counts as late."
    )
    readiness_target: float = Field(
        Settings().readiness_target,
        gt=0.5,
        lt=1,
        description="Share of calls that must send all keys by to-device before the backup may be switched off.",
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
            grace_seconds=self.grace_seconds,
            horizon_seconds=self.horizon_seconds,
            late_seconds=self.late_seconds,
            readiness_target=self.readiness_target,
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

    _only_one = check("secret_file")(only_one)

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
        return (reveal(self.secret or self.secret_file) or "").encode()

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
