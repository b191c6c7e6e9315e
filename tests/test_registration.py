from pathlib import Path
from typing import Any

import pytest
import yaml
from synapse.appservice import ApplicationService
from synapse.config.appservice import load_appservices
from synapse.types import UserID

from rtc_appservice.errors import ConfigError
from rtc_appservice.registration import Registration, Scope, load, render, render_sample

SAMPLE = Path(__file__).parent.parent / "registration.yaml"
PILOT = r"@(ann|bob):example\.org$"


def _write(folder: Path, scope: Scope) -> Path:
    path = folder / "registration.yaml"
    regex = PILOT if scope is Scope.PILOT else None
    path.write_text(render(scope, domain="example.org", url="http://localhost:29331", pilot_regex=regex))
    return path


def _in_synapse(path: Path) -> ApplicationService:
    (service,) = load_appservices("example.org", [str(path)])
    return service


def test_the_sample_is_what_the_generator_writes() -> None:
    """The file beside the sources and the generator cannot drift apart."""
    assert render_sample() == SAMPLE.read_text()


def test_the_sample_is_not_fit_to_run_with() -> None:
    """Its tokens are known to everybody."""
    faults = load(SAMPLE).faults()

    assert ["as_token", "hs_token"] == [fault.partition(":")[0] for fault in faults]
    assert all("rtc-appservice registration" in fault for fault in faults)


@pytest.mark.parametrize("scope", Scope)
def test_the_sample_explains_every_scope(scope: Scope) -> None:
    """What the generator writes for another scope stands in the sample as a comment."""
    regex = r"@(ann|bob|carol):example\.org$" if scope is Scope.PILOT else None
    other = render(scope, domain="example.org", url="http://localhost:29331", pilot_regex=regex)
    comments = {line.lstrip("# ") for line in SAMPLE.read_text().splitlines()}
    tokens = ("as_token", "hs_token", "# Registration of", "rooms: []")

    assert [] == [
        line for line in other.splitlines() if not line.strip().startswith(tokens) and line.lstrip("# ") not in comments
    ]


@pytest.mark.parametrize("scope", Scope)
def test_a_written_registration_leaves_no_doubt(tmp_path: Path, scope: Scope) -> None:
    """Of the homeserver and the port it was written for."""
    assert [] == load(_write(tmp_path, scope)).doubts(domain="example.org", port=29331)


@pytest.mark.parametrize(
    ("changes", "doubts"),
    [
        ({"url": "http://localhost:29332"}, ["url: has port 29332, and appservice.port is 29331"]),
        ({"url": "https://rtc.example.org/"}, ["url: has port 443, and appservice.port is 29331"]),
        ({"url": None}, ["url: is null"]),
        ({"namespaces": {"users": [{"regex": "@rtc-auditor.*"}], "rooms": []}}, ["namespaces: name neither"]),
        ({"namespaces": {}}, ["namespaces: name neither"]),
        ({"namespaces": {"users": [{"regex": "@.*:other$"}]}}, ["namespaces.users: none names example.org"]),
        ({"receive_ephemeral": False, "de.sorunome.msc2409.push_ephemeral": False}, ["receive_ephemeral: is off"]),
    ],
)
def test_what_is_probably_not_meant_is_said(tmp_path: Path, changes: dict[str, Any], doubts: list[str]) -> None:
    """By key; such a registration can be used all the same."""
    path = _write(tmp_path, Scope.USERS)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    registered = load(path)
    said = registered.doubts(domain="example.org", port=29331)

    assert [] == registered.faults()
    assert [True] * len(doubts) == [found.startswith(start) for found, start in zip(said, doubts, strict=True)]


@pytest.mark.parametrize("url", [5, "localhost:29331", "http://", "http://h:99999", ""])
def test_an_address_that_is_none_is_a_fault(tmp_path: Path, url: object) -> None:
    """The homeserver could not reach it."""
    path = _write(tmp_path, Scope.ROOMS)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"url": url}))
    with pytest.raises(ConfigError, match="url: must be a URL that starts with http"):
        load(path)


@pytest.mark.parametrize("scope", Scope)
def test_a_written_registration_is_fit_to_run_with(tmp_path: Path, scope: Scope) -> None:
    """Tokens are fresh and differ; our reading of the scope is the one it was written for."""
    registered = load(_write(tmp_path, scope))

    assert [] == registered.faults()
    assert (scope is not Scope.ROOMS) == registered.envelopes
    assert registered.as_token not in {registered.hs_token, load(_write(tmp_path, scope)).as_token}


@pytest.mark.parametrize(
    ("scope", "ann", "zoe", "room"),
    [(Scope.ROOMS, False, False, True), (Scope.USERS, True, True, False), (Scope.PILOT, True, False, False)],
)
def test_synapse_understands_the_scope(tmp_path: Path, scope: Scope, ann: bool, zoe: bool, room: bool) -> None:
    """Synapse's own reading: who and what falls under each scope, also a room id without a server part."""
    path = _write(tmp_path, scope)
    service = _in_synapse(path)
    registered = load(path)

    assert (ann, zoe) == tuple(service.is_user_in_namespace(f"@{name}:example.org") for name in ("ann", "zoe"))
    assert (ann, zoe) == tuple(registered.covers(f"@{name}:example.org") for name in ("ann", "zoe"))
    assert room is service.is_room_id_in_namespace("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM")
    assert not service.is_user_in_namespace("@ann:example.organic")
    assert service.supports_ephemeral
    assert service.msc3202_transaction_extensions
    assert not service.is_rate_limited()


@pytest.mark.parametrize("scope", Scope)
def test_only_our_own_users_are_exclusive(tmp_path: Path, scope: Scope) -> None:
    """People keep their user ids; nobody else can take the service's."""
    service = _in_synapse(_write(tmp_path, scope))

    assert service.is_exclusive_user("@rtc-auditor-witness:example.org")
    assert not service.is_exclusive_user("@ann:example.org")
    assert service.sender == UserID.from_string("@rtc-auditor:example.org")


def test_a_pilot_needs_its_users() -> None:
    """A regular expression belongs to the pilot scope, and to no other."""
    for scope, regex in ((Scope.PILOT, None), (Scope.USERS, PILOT), (Scope.ROOMS, PILOT)):
        with pytest.raises(ConfigError, match="--pilot-regex"):
            render(scope, domain="example.org", url="http://localhost:29331", pilot_regex=regex)
    with pytest.raises(ConfigError, match="not a regular expression"):
        render(Scope.PILOT, domain="example.org", url="http://localhost:29331", pilot_regex="@(ann")


def test_every_fault_of_a_registration_is_said_at_once(tmp_path: Path) -> None:
    """One reading tells all that is wrong, by key, and shows no token."""
    path = tmp_path / "registration.yaml"
    path.write_text(
        yaml.safe_dump({"id": "", "as_token": "hunter2", "namespaces": {"users": [{}, {"regex": "@(a"}], "rooms": [5]}})
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    faults = [line.strip().partition(": ")[0] for line in str(caught.value).splitlines()[1:]]

    assert [
        "id",
        "hs_token",
        "sender_localpart",
        "url",
        "namespaces.users.0.regex",
        "namespaces.users.1.regex",
        "namespaces.rooms.0.regex",
    ] == faults
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("as_token", "hs_token", "fault"), [("a" * 32, "a" * 32, "the same"), ("a" * 32, "short", "shorter than 20")]
)
def test_weak_tokens_are_refused(as_token: str, hs_token: str, fault: str) -> None:
    """A token that could be guessed, or that opens both doors, is not run with."""
    registered = Registration(
        id="x",
        as_token=as_token,
        hs_token=hs_token,
        sender_localpart="bot",
        url=None,
        users=(),
        rooms=(),
        to_device=True,
    )

    assert [True] == [fault in each for each in registered.faults()]


def test_without_ephemeral_events_there_are_no_envelopes(tmp_path: Path) -> None:
    """Synapse sends to-device messages only with them: their absence would say nothing."""
    path = _write(tmp_path, Scope.USERS)
    content = yaml.safe_load(path.read_text())
    content["receive_ephemeral"] = content["de.sorunome.msc2409.push_ephemeral"] = False
    path.write_text(yaml.safe_dump(content))

    assert not load(path).envelopes


def test_a_number_is_no_name(tmp_path: Path) -> None:
    """YAML reads digits without quotes as a number."""
    path = _write(tmp_path, Scope.USERS)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"id": 5, "hs_token": [1]}))
    with pytest.raises(ConfigError, match=r"id: must be text; put it in quotes\n  hs_token: must be text"):
        load(path)


def test_users_of_another_form_are_a_fault(tmp_path: Path) -> None:
    """The namespace of users is a list."""
    path = _write(tmp_path, Scope.USERS)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"namespaces": {"users": 5}}))
    with pytest.raises(ConfigError, match=r"namespaces\.users: must be a list"):
        load(path)
