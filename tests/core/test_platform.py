"""Names as clients give them to their devices, and the platform each tells."""

import msgspec
import pytest

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.platform import platform_of, with_platforms
from rtc_appservice.core.readiness import assess
from rtc_appservice.core.words import Platform

from .build import NOON, Scene


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        ("app.element.io: Firefox on Linux", Platform.WEB),
        ("app.element.io: Chrome auf macOS", Platform.WEB),
        ("develop.element.io: Mobile Safari on iOS", Platform.WEB),
        ("https://chat.example.org/element/: Chrome on Android", Platform.WEB),
        ("localhost:8080: Chrome on Linux", Platform.WEB),
        ("desktop.example.org: Chrome on Windows", Platform.WEB),
        ("app.element.io (Chrome, Linux)", Platform.WEB),
        ("https://riot.im/app via Chrome on Linux", Platform.WEB),
        ("Element Desktop: macOS", Platform.DESKTOP),
        ("Element Nightly Desktop: Windows", Platform.DESKTOP),
        ("Element Desktop (Windows)", Platform.DESKTOP),
        ("Riot Desktop on Linux", Platform.DESKTOP),
        ("Element X Android", Platform.ANDROID),
        ("Element Android", Platform.ANDROID),
        ("Element X on Chrome Mobile for Android", Platform.ANDROID),
        ("Element X iOS", Platform.IOS),
        ("Element Pro iOS", Platform.IOS),
        ("Element X on Mobile Safari for iOS", Platform.IOS),
        ("Element X on iPhone", Platform.IOS),
        ("Element on Safari for macOS", Platform.OTHER),
        ("SchildiChat Next (Google Pixel 5)", Platform.OTHER),
        ("my desktop", Platform.OTHER),
        ("Studios", Platform.OTHER),
        ("", Platform.UNKNOWN),
        ("  ", Platform.UNKNOWN),
        (None, Platform.UNKNOWN),
    ],
)
def test_platform_of(name: str | None, platform: Platform) -> None:
    """Element Web, Desktop, X Android, X iOS, their forerunners, logins through MAS, and what tells nothing."""
    assert platform == platform_of(name)


def blocked() -> CallReport:
    """Give a call whose two devices can only use room events."""
    scene = Scene()
    for name, seconds in (("alice", 0), ("bob", 10)):
        scene.join(name, seconds)
        scene.room_key(name, seconds + 0.1)
    for name in ("alice", "bob"):
        scene.leave(name, 100)
    return scene.call()


def test_blockers_by_platform() -> None:
    """Devices that block are counted apart by platform, and the reason in words names it."""
    call = blocked()
    alice = min(call.fallbacks, key=lambda fallback: fallback.user_id)
    known = {(call.homeserver, alice.user_id, alice.device_id): Platform.IOS}

    found = assess(with_platforms([call], known), NOON)

    assert {("ios", 1), ("unknown", 1)} == {(each["platform"], each["devices"]) for each in found.blockers}
    assert any("platform ios" in reason for reason in found.reasons)


def test_a_projected_call_has_no_platform() -> None:
    """What is projected and stored does not hold it: a replay cannot depend on what a homeserver said meanwhile."""
    call = blocked()

    assert {None} == {each.platform for each in call.participants}
    assert b'"platform"' not in msgspec.json.encode(call)
