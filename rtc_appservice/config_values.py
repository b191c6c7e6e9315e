"""What single values of the configuration have to be: each is taken, or its fault is said without the value."""

import json
import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationInfo
from pydantic_settings import NoDecode

from rtc_appservice.files import PLACEHOLDER

#: HMAC-SHA-256 keys shorter than this would be easier to guess than a media key (16 bytes).
SECRET_MIN_BYTES = 16

#: The database of nobody, in the file that `rtc-appservice config` writes.
EXAMPLE_URL = "postgresql://user:password@host/name"


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
    if url == EXAMPLE_URL:
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


def only_one(value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
    """Give the secret from a file back; ValueError if the key is also given directly."""
    direct = str(info.field_name).removesuffix("_file")
    if value is not None and info.data.get(direct) is not None:
        raise ValueError(f"is given, and `{direct}` too; keep one of them")
    return value


def reveal(secret: SecretStr | None) -> str | None:
    """Give the text of a secret."""
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
