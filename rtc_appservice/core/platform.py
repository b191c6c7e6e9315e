"""
Stage 5: the platform of a client, told from the name of its device.

Clients name their device at login, and few people rename it. What they write:

- Element Web: the address it is served from, then browser and system, as `app.element.io: Firefox on Linux`
  (`WebPlatform.ts`; what follows the colon is translated); before that `app.element.io (Chrome, Linux)`, and as Riot
  `https://riot.im/app via Chrome on Linux`.
- Element Desktop: `Element Desktop: macOS` (`ElectronPlatform.tsx`), before that `Element Desktop (macOS)` and
  `Riot Desktop on macOS`; the first word is the brand.
- Element X Android: `Element X Android` (`RustMatrixAuthenticationService.kt`); Element Android: `Element Android`.
- Element X iOS: `Element X iOS` (`UIDevice.swift`, `login_initial_device_name_ios`); Element iOS: `Element iOS`.
- Who logs in through the Matrix Authentication Service is named by it after client, browser and system of the login, as
  `Element X on Mobile Safari for iOS`, or client and model, as `Element X on iPhone` (`templates/device_name.txt`). On
  a phone that is the app. On a computer Element Web and Element Desktop get the same name: `other`.
- Element Call on its own gives no name (`useInteractiveRegistration.ts`): `unknown`. As a widget it is the client it
  runs in, and so is its device.
"""

import re
from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from rtc_appservice.core.model import CallReport
from rtc_appservice.core.words import DeviceId, Platform, ServerName, UserId

#: A device as one homeserver knows it.
KnownDevice = tuple[ServerName, UserId, DeviceId]

#: No client writes more.
_LONGEST = 256

# In this order: a browser on a phone is `web`, and a web client may be served from an address with `desktop` in it.
_PATTERNS = (
    (Platform.WEB, re.compile(r"\S+[.:/]\S*: \S|\S+ \([^,()]+, [^,()]+\)$|https?://\S+ via \S")),
    (Platform.DESKTOP, re.compile(r".*\S desktop(: | \(| on )\S")),
    (Platform.ANDROID, re.compile(r".*\bandroid\b")),
    (Platform.IOS, re.compile(r".*\b(ios|iphone|ipad|ipados)\b")),
)


def platform_of(display_name: str | None) -> Platform:
    """Give the platform a device's display name tells; `unknown` without a name, `other` if it tells none."""
    name = (display_name or "")[:_LONGEST].strip().lower()
    if not name:
        return Platform.UNKNOWN
    return next((platform for platform, pattern in _PATTERNS if pattern.match(name)), Platform.OTHER)


def with_platforms(calls: Iterable[CallReport], known: Mapping[KnownDevice, Platform]) -> list[CallReport]:
    """Give calls with the platform of each participant; one nothing is known of is `unknown`."""
    return [
        replace(
            call,
            participants=tuple(
                replace(each, platform=known.get((call.homeserver, each.user_id, each.device_id), Platform.UNKNOWN))
                for each in call.participants
            ),
        )
        for call in calls
    ]
