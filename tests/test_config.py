import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rtc_appservice.config import Config
from rtc_appservice.config_file import load_config, render_config, write_config
from rtc_appservice.core.model import Settings
from rtc_appservice.errors import ConfigError

SECRET = "sixteen-bytes-at-least"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the developer's own shell sets out of the tests."""
    for name in [name for name in os.environ if name.startswith("RTC_APPSERVICE_")]:
        monkeypatch.delenv(name)


def _write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    """Give a configuration with what has no default, and nothing else."""
    return _write(tmp_path, f"secret: {SECRET}\nhomeserver: {{address: 'http://hs:8008/', domain: example.org}}\n")


def _keys(content: object, prefix: str = "") -> Iterator[str]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _keys(value, f"{prefix}{key}.")
    else:
        yield prefix.rstrip(".")


#: Every key, dotted.
KEYS = [
    key
    for name, field in Config.model_fields.items()
    for key in [f"{name}.{inner}" for inner in getattr(field.annotation, "model_fields", ())] or [name]
]


def test_written_config_is_the_default_one(tmp_path: Path) -> None:
    """What `config` writes is valid, holds a fresh secret, and leaves every default as it is."""
    path = tmp_path / "config.yaml"
    write_config(path, address="http://hs:8008", domain="example.org")
    config = load_config(path)

    assert "example.org" == config.homeserver.domain
    assert 16 <= len(config.deployment_secret)
    assert Settings() == config.detection.settings()
    assert config.database.dsn is None
    assert config.posthog.key is None
    assert 0o600 == path.stat().st_mode & 0o777


def test_written_config_names_every_key() -> None:
    """Keys without a value stand there commented out, so the file alone tells what there is."""
    text = render_config({})
    uncommented = "\n".join(
        line.replace("#", "", 1) if line.strip().startswith("#") and not line.strip().startswith("# ") else line
        for line in text.splitlines()
    )

    assert set(KEYS) == set(_keys(yaml.safe_load(uncommented)))


def test_two_written_configs_have_two_secrets(tmp_path: Path) -> None:
    """A secret is never a constant."""
    for name in ("a", "b"):
        write_config(tmp_path / name, address="http://hs:8008", domain="example.org")

    assert load_config(tmp_path / "a").deployment_secret != load_config(tmp_path / "b").deployment_secret


def test_config_is_never_overwritten(minimal: Path) -> None:
    """A second `config` would lose the secret."""
    before = minimal.read_text()
    with pytest.raises(ConfigError, match="never overwritten"):
        write_config(minimal)

    assert before == minimal.read_text()


def test_every_fault_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run tells all that is wrong, by key, in the file and in the environment."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABSE__URL", "postgresql://u:hunter2@h/d")
    path = _write(
        tmp_path,
        """
        secret: short
        homeserver: {adress: 'http://hs:8008', domain: ''}
        appservice: {address: hs, port: 99999, max_body_bytes: none}
        database: {url: 'mysql://u:hunter2@h/d', url_file: nowhere, pool_size: 0}
        posthog: {api_key: phc_x}
        detection: {grace_seconds: 9, horizon_seconds: 8, readiness_target: 1}
        logging: {level: LOUD}
        extra: 1
        """,
    )
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    faults = [line.strip().partition(": ")[0] for line in str(caught.value).splitlines()[1:]]

    assert [
        "RTC_APPSERVICE_DATABSE__URL",
        "secret",
        "homeserver.address",
        "homeserver.domain",
        "homeserver.adress",
        "appservice.address",
        "appservice.port",
        "appservice.max_body_bytes",
        "database.url",
        "database.url_file",
        "database.pool_size",
        "posthog.host",
        "detection.horizon_seconds",
        "detection.readiness_target",
        "logging.level",
        "extra",
    ] == faults
    assert "did you mean homeserver.address?" in str(caught.value)
    assert "hunter2" not in str(caught.value)


#: Values that stand where others belong.
_ODD = [
    None,
    "",
    0,
    -1,
    1.5,
    10**30,
    "x",
    True,
    [1],
    {"a": 1},
    [["x"]],
    "nan",
    float("inf"),
    float("nan"),
    "\0",
    "x\ny",
]


#: Words of pydantic and of Python.
_PROGRAMMERS = r"Input|valid |<class|dictionary|field|\d\.0\b"


@pytest.mark.parametrize("key", sorted({*KEYS, *Config.model_fields}))
def test_no_fault_is_told_in_a_librarys_words(tmp_path: Path, key: str) -> None:
    """Whatever stands at a key, what is said of it begins with a key of ours and needs no knowledge of Python."""
    known = {*KEYS, *Config.model_fields}
    for value in _ODD:
        content: dict[str, Any] = {"secret": SECRET, "homeserver": {"address": "http://hs", "domain": "example.org"}}
        name, _, inner = key.partition(".")
        content[name] = {**content.get(name, {}), inner: value} if inner else value
        try:
            load_config(_write(tmp_path, yaml.safe_dump(content)))
        except ConfigError as error:
            faults = str(error).replace(str(tmp_path), "").replace("\ny", "").splitlines()[1:]
            assert [] != faults
            assert [] == [fault for fault in faults if re.search(_PROGRAMMERS, fault)]
            said = {fault.strip().partition(": ")[0] for fault in faults}
            assert [] == [each for each in said if each not in known and each.rpartition(".")[0] not in known]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HOMESERVER", "x", "RTC_APPSERVICE_HOMESERVER: unknown environment variable; did you mean"),
        ("NONSENSE", "x", "RTC_APPSERVICE_NONSENSE: unknown environment variable; remove it"),
        ("AUDITOR__ROOMS", "[", "auditor.rooms: must be a list"),
        ("METRICS__LISTEN_PORT", "x", "metrics.listen_port: must be a whole number; the default is 29332"),
        ("POSTHOG__SAMPLE_RATE", "2", "posthog.sample_rate: must be at most 1; the default is 1"),
        ("LOGGING__LEVEL", "loud", "logging.level: must be DEBUG, INFO, WARNING or ERROR"),
    ],
)
def test_a_wrong_variable_is_a_fault(
    minimal: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    """What stands in the environment is told of like what stands in the file, without a traceback."""
    monkeypatch.setenv(f"RTC_APPSERVICE_{name}", value)
    with pytest.raises(ConfigError) as caught:
        load_config(minimal)

    assert message in str(caught.value)


@pytest.mark.parametrize("value", ["#a:b, !c:d", '["#a:b", "!c:d"]', "#a:b !c:d"])
def test_a_list_can_stand_in_the_environment(minimal: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """With commas, as people write it, or as JSON."""
    monkeypatch.setenv("RTC_APPSERVICE_AUDITOR__ROOMS", value)

    assert ["#a:b", "!c:d"] == load_config(minimal).auditor.rooms


def test_what_was_not_filled_in_is_said(tmp_path: Path) -> None:
    """`config` without options writes placeholders; they are named before anything asks a homeserver of that name."""
    write_config(tmp_path / "config.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml")
    faults = str(caught.value).splitlines()[1:]

    assert ["homeserver.address", "homeserver.domain"] == [fault.strip().partition(": ")[0] for fault in faults]
    assert all("is still the placeholder" in fault and "RTC_APPSERVICE_HOMESERVER__" in fault for fault in faults)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("secret", "replace-me-with-a-secret"),
        ("database.url", "postgresql://user:password@host/name"),
        ("metrics.token", "replace-me-with-a-token"),
        ("posthog.api_key", "phc_…"),
    ],
)
def test_an_example_is_no_value(minimal: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str) -> None:
    """What everybody can read in the documents is not run with."""
    monkeypatch.setenv(f"RTC_APPSERVICE_{key.upper().replace('.', '__')}", value)
    with pytest.raises(ConfigError, match=rf"{key}: is (still|the example|no key)"):
        load_config(minimal)


@pytest.mark.parametrize(
    ("appservice", "metrics", "refused"),
    [
        ("{port: 29332}", "{}", True),
        ("{}", "{listen_port: 29331}", True),
        ("{port: 5, hostname: 0.0.0.0}", "{listen_port: 5}", True),
        ("{port: 5, hostname: localhost}", "{listen_port: 5}", True),
        ("{port: 5, hostname: 127.0.0.2}", "{listen_port: 5}", False),
        ("{port: 5}", "{listen_port: 5, enabled: false}", False),
        ("{port: 5}", "{listen_port: 6}", False),
    ],
)
def test_two_listeners_need_two_ports(minimal: Path, appservice: str, metrics: str, refused: bool) -> None:
    """Both keys are named, before one listener finds the other on its port."""
    minimal.write_text(f"{minimal.read_text()}appservice: {appservice}\nmetrics: {metrics}\n")
    if refused:
        with pytest.raises(ConfigError, match=r"another for metrics\.listen_port or for appservice\.port"):
            load_config(minimal)
    else:
        load_config(minimal)


def test_notices_need_a_room(tmp_path: Path) -> None:
    """Nothing is posted unless a room is given, and a summary has to go somewhere."""
    start = f"secret: {SECRET}\nhomeserver: {{address: 'http://hs:8008', domain: example.org}}\nnotifications: "
    with pytest.raises(ConfigError, match=r"notifications.weekly: needs room_id"):
        load_config(_write(tmp_path, start + "{weekly: true}"))
    with pytest.raises(ConfigError, match=r"notifications.room_id: must be a room id"):
        load_config(_write(tmp_path, start + "{room_id: operators, weekly: true}"))
    config = load_config(_write(tmp_path, start + "{room_id: '#operators:example.org'}"))

    assert ("#operators:example.org", False) == (config.notifications.room_id, config.notifications.weekly)


def test_missing_secret_is_a_fault(tmp_path: Path) -> None:
    """Without a secret nothing could be keyed, so there is no default for it."""
    path = _write(tmp_path, "homeserver: {address: 'http://hs:8008', domain: example.org}")
    with pytest.raises(ConfigError, match="secret_file: is missing, and so is `secret`"):
        load_config(path)


def test_environment_wins_over_the_file(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key set in the environment is taken, the section's other keys stay; an empty variable says nothing."""
    for name, value in {
        "HOMESERVER__DOMAIN": "other.org",
        "APPSERVICE__PORT": "1234",
        "LOGGING__LEVEL": "",
        "CONFIG": str(minimal),
    }.items():
        monkeypatch.setenv(f"RTC_APPSERVICE_{name}", value)
    config = load_config(minimal)

    assert ("other.org", "http://hs:8008") == (config.homeserver.domain, config.homeserver.address)
    assert 1234 == config.appservice.port
    assert "INFO" == config.logging.level


def test_secrets_come_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret may stand in a file of its own, named from the folder of the configuration; its newline is not part."""
    (tmp_path / "url").write_text("postgresql://u:p@h/d\n")
    (tmp_path / "key").write_text("phc_x\n")
    path = _write(
        tmp_path,
        """
        homeserver: {address: 'http://hs:8008', domain: example.org}
        database: {url_file: url}
        posthog: {api_key_file: key, host: 'http://localhost:1'}
        """,
    )
    (tmp_path / "elsewhere").write_text(f"{SECRET}\n")
    monkeypatch.setenv("RTC_APPSERVICE_SECRET_FILE", str(tmp_path / "elsewhere"))
    config = load_config(path)

    assert SECRET.encode() == config.deployment_secret
    assert "postgresql://u:p@h/d" == config.database.dsn
    assert "phc_x" == config.posthog.key


def test_a_secret_and_its_file_are_too_much(minimal: Path) -> None:
    """Which of two is meant cannot be told."""
    (minimal.parent / "secret").write_text(SECRET)
    minimal.write_text(minimal.read_text() + "secret_file: secret\n")
    with pytest.raises(ConfigError, match="secret_file: is given, and `secret` too"):
        load_config(minimal)


def test_secrets_are_not_printed(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A printed configuration, in a log or an error, shows no secret."""
    url = "postgresql://u:hunter2@h/d"
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", url)
    config = load_config(minimal)

    assert url == config.database.dsn
    assert "hunter2" not in repr(config)
    assert SECRET not in repr(config)


@pytest.mark.parametrize("sign", ["#", "/", "?", "@", "[", "\u2100", "12#34", "12/34", "12?34", "?a&"])
@pytest.mark.parametrize("key", ["url", "url_file"])
def test_a_database_url_that_ends_early_is_not_quoted(
    minimal: Path, monkeypatch: pytest.MonkeyPatch, key: str, sign: str
) -> None:
    """A sign of the password that the URL means otherwise is said, and no part of the password is."""
    url = (
        f"postgresql://u:hunter{sign}2@db.example/x" if not sign[0].isdigit() else f"postgresql://u:{sign}@db.example/x"
    )
    (minimal.parent / "url").write_text(url)
    monkeypatch.setenv(f"RTC_APPSERVICE_DATABASE__{key.upper()}", str(minimal.parent / "url") if "_" in key else url)
    with pytest.raises(ConfigError, match="percent-encode special characters") as caught:
        load_config(minimal)

    assert f"  database.{key}: " in str(caught.value)
    assert "hunter" not in str(caught.value).replace(str(minimal), "")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%23%40@db.example:5432/x",
        "postgres://h1:5432,h2:5433/x?target_session_attrs=any",
        "postgresql://u@[::1]:5432/x",
        "postgresql://postgres:@/postgres?host=/tmp/somewhere",
        "postgresql://",
    ],
)
def test_every_form_of_database_url_is_taken(minimal: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Several hosts, sockets and addresses are for PostgreSQL to judge."""
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__URL", url)

    assert url == load_config(minimal).database.dsn


@pytest.mark.parametrize("text", ["database: {url_file: 5}", "secret_file: [a]"])
def test_a_file_is_named_by_a_path(tmp_path: Path, text: str) -> None:
    """Anything else is a fault of that key."""
    with pytest.raises(ConfigError, match="_file: must be the path of a file"):
        load_config(_write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "line 1: not YAML"),
        ("- a\n- b\n", "must hold keys"),
        ("homeserver: example.org", "homeserver: must hold keys, indented below it: address, domain"),
        ("", "homeserver.address: is missing; .* RTC_APPSERVICE_HOMESERVER__ADDRESS"),
        ("homeserver: {address:, domain:}", "homeserver.domain: is missing; .* RTC_APPSERVICE_HOMESERVER__DOMAIN"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """What is no configuration is said to be none, without a traceback's words."""
    with pytest.raises(ConfigError, match=message):
        load_config(_write(tmp_path, text))


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    """The first thing a newcomer meets says what to do."""
    with pytest.raises(ConfigError, match=r"`rtc-appservice config .*absent.yaml` writes one"):
        load_config(tmp_path / "absent.yaml")


def test_empty_sections_are_left_at_their_defaults(minimal: Path) -> None:
    """A section whose keys are all commented out is none."""
    minimal.write_text(minimal.read_text() + "metrics:\nposthog:\n")

    assert 29332 == load_config(minimal).metrics.listen_port


def test_paths_start_at_the_folder_of_the_file(minimal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service is rarely started in the folder of its configuration; the environment starts where the process does."""
    minimal.write_text(minimal.read_text() + "appservice: {registration: sub/r.yaml}\n")
    monkeypatch.setenv("RTC_APPSERVICE_DATABASE__EMBEDDED_PATH", "data")
    config = load_config(minimal)

    assert minimal.parent / "sub" / "r.yaml" == config.appservice.registration
    assert Path("data") == config.database.embedded_path

    monkeypatch.delenv("RTC_APPSERVICE_DATABASE__EMBEDDED_PATH")
    assert minimal.parent / "postgresql" == load_config(minimal).database.embedded_path
