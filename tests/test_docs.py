"""The documents: what they name exists, and what exists is named."""

import re
import tomllib
from pathlib import Path

import click
import pytest

from rtc_appservice import __version__
from rtc_appservice.cli.main import main

ROOT = Path(__file__).parent.parent
TOP = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md")]
DOCUMENTS = [*TOP, *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file of ours finds it."""
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", path.read_text())

    assert [] == [target for target in targets if not (path.parent / target).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(path: Path) -> None:
    """A path of the package or the repository that is named in a document is there."""
    named = re.findall(r"`((?:rtc_appservice|migrations|docs|tests|requirements)/[\w./-]*)`", path.read_text())

    assert [] == [name for name in named if "NNNN" not in name and not (ROOT / name).exists()]


def test_commands_in_the_readme_exist() -> None:
    """Each `rtc-appservice …` is a command, and its options are."""
    for line in re.findall(r"rtc-appservice ([a-z][^`\n#]*)", (ROOT / "README.md").read_text()):
        words = line.split()
        command: click.Command = main
        while isinstance(command, click.Group):
            name = words.pop(0)
            assert name in command.commands, line
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_changelog_names_every_command() -> None:
    """A command that nobody is told of does not exist."""
    changelog = (ROOT / "CHANGELOG.md").read_text()

    assert [] == [name for name in main.commands if f"`{name}" not in changelog]


def test_make_targets_in_the_readme_exist() -> None:
    """Each `make …` is a target."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())) <= targets


def test_architecture_names_every_stage() -> None:
    """The drawing and the package agree."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    packages = [path.parent.name for path in (ROOT / "rtc_appservice").glob("*/__init__.py")]

    assert [] == [name for name in packages if name not in text]


def test_version_is_in_the_changelog_once_released() -> None:
    """Either the changelog has the version, or it is the one being worked on."""
    text = (ROOT / "CHANGELOG.md").read_text()

    assert f"## {__version__}" in text or "## Unreleased" in text


def test_supported_pythons_agree() -> None:
    """`requires-python` is the oldest of the classifiers, and the README names it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: 3." in line]
    oldest = min(named, key=lambda version: int(version.partition(".")[2]))

    assert f">={oldest}" == project["requires-python"]
    assert f"Python {oldest} or later" in (ROOT / "README.md").read_text()
