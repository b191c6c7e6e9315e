"""The monitoring files that come with the service, written out."""

from pathlib import Path

import pytest

from rtc_appservice.errors import InputError
from rtc_appservice.view.monitoring import Kind, monitoring_files, write_monitoring


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("grafana", {"operations.json", "rollout.json"}),
        ("prometheus", {"prometheus.yml", "rules/rtc-appservice.yml", "alerts/rtc-appservice.yml"}),
    ],
)
def test_files_are_there(kind: Kind, expected: set[str]) -> None:
    """Each kind has its files, under the paths the sample configuration names them by."""
    assert expected <= {path.as_posix() for path in monitoring_files(kind)}


def test_written_once(tmp_path: Path) -> None:
    """A second time there is nothing to write."""
    first = write_monitoring("prometheus", tmp_path / "new")
    second = write_monitoring("prometheus", tmp_path / "new")

    assert {tmp_path / "new" / name for name in monitoring_files("prometheus")} == set(first)
    assert [] == second


def test_edited_files_are_kept(tmp_path: Path) -> None:
    """A file with other content stops it before anything is written, unless it may be replaced."""
    edited = tmp_path / "rollout.json"
    edited.write_text("mine")
    with pytest.raises(InputError, match=r"rollout\.json"):
        write_monitoring("grafana", tmp_path)
    kept = [path.name for path in tmp_path.iterdir()], edited.read_text()
    write_monitoring("grafana", tmp_path, replace=True)

    assert (["rollout.json"], "mine") == kept
    assert monitoring_files("grafana")[Path("rollout.json")] == edited.read_text()


def test_no_place_to_write(tmp_path: Path) -> None:
    """A folder that cannot be made is an error of the input."""
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_monitoring("grafana", tmp_path / "file" / "folder")
