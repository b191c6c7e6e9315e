"""What a test needs of the system, asked for by name."""

import os
import shutil

import pytest

#: The Debian package of each program tests may ask for.
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
}


def require(program: str) -> str:
    """Give the path of a program; without it the test is skipped, or fails where REQUIRE_ALL=1 says all must run."""
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"{program} is not installed (Debian package: {PACKAGES[program]})"
    if os.environ.get("REQUIRE_ALL") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
