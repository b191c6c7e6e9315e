"""What the import contracts cannot say: what `core` may do at all, and that nothing escapes the contracts."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "rtc_appservice"

#: Of the standard library, what reads the clock, the dice, the surroundings, or waits.
_IMPURE = {"asyncio", "logging", "os", "random", "secrets", "socket", "subprocess", "sys", "threading", "time"}

#: Top-level modules that the contracts leave open on purpose: the outermost ring, and what everything may import.
_UNLISTED = {"__init__", "__main__", "errors"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.stem)
def test_core_imports_nothing_impure(path: Path) -> None:
    """The standard library without clock, dice and surroundings; msgspec; core itself and the errors."""
    found = {name for name in _imports(path) if not name.startswith(("rtc_appservice.core", "rtc_appservice.errors"))}
    roots = {name.partition(".")[0] for name in found}

    assert set() == roots - sys.stdlib_module_names - {"msgspec"}
    assert set() == roots & _IMPURE


@pytest.mark.parametrize("path", sorted((PACKAGE / "core").glob("*.py")), ids=lambda path: path.stem)
def test_core_does_not_ask_the_clock_or_wait(path: Path) -> None:
    """Time is passed in, and nothing is awaited."""
    tree = ast.parse(path.read_text())
    called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}

    assert set() == called & {"now", "utcnow", "today", "uuid1", "uuid4"}
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)]


def test_every_module_is_under_a_contract() -> None:
    """A new top-level module cannot be forgotten: the contract that keeps core pure names each of them."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    pure = next(contract for contract in contracts if contract["source_modules"] == ["rtc_appservice.core"])
    listed = {name.partition(".")[2] for name in pure["forbidden_modules"] if name.startswith("rtc_appservice.")}
    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }

    assert modules - _UNLISTED - {"core"} == listed


def test_modules_stay_readable() -> None:
    """A module is split before it takes in everything."""
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}

    assert [] == [name for name, length in lengths.items() if length > 500]


def test_sql_stands_in_the_store() -> None:
    """Statements are written where the schema is known."""
    words = ("INSERT INTO", "SELECT ", "DELETE FROM", "UPDATE ")
    outside = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "store"]
    found = [
        str(path.relative_to(ROOT))
        for path in outside
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.lstrip().startswith(words)
    ]

    assert [] == found


def test_dependencies_are_named_with_their_reason() -> None:
    """Each line of the dependency list says what it is for."""
    text = (ROOT / "pyproject.toml").read_text()
    lines = text.partition("\ndependencies = [\n")[2].partition("]\n")[0].splitlines()

    assert 0 < len(lines)
    assert [] == [line for line in lines if " # " not in line]


def test_tests_import_what_the_project_names() -> None:
    """What another package happens to bring is gone with its next release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lists = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    lists += project["dependency-groups"].values()
    named = {_spelt(re.split(r"[<>=\[; ]", line)[0]) for lines in lists for line in lines}
    brought_by = packages_distributions()
    roots = {name.partition(".")[0] for path in (ROOT / "tests").rglob("*.py") for name in _imports(path)}
    # What mautrix calls its extra `encryption`.
    named |= {"pycryptodome", "python-olm", "unpaddedbase64"}

    assert [] == [root for root in sorted(roots) if named.isdisjoint(map(_spelt, brought_by.get(root, named)))]


def _spelt(name: str) -> str:
    """Give the name of a package as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _locked(name: str) -> set[str]:
    """Give the packages of a locked file with their versions."""
    return set(re.findall(r"^\S+==[^\s;]+", (ROOT / "requirements" / name).read_text(), re.MULTILINE))


def test_locked_files_are_of_one_lock() -> None:
    """What is installed to run is what was tested, and the image can do what `auditor.enabled` asks for."""
    everything, run, encryption = _locked("all.txt"), _locked("run.txt"), _locked("encryption.txt")
    used = re.findall(r"-r requirements/(\S+)", (ROOT / "Dockerfile").read_text())

    assert set() == (run | encryption | _locked("build.txt")) - everything
    assert {"python-olm", "unpaddedbase64"} <= {package.partition("==")[0] for package in encryption - run}
    assert set() == run - encryption
    assert ["build.txt", "encryption.txt"] == used


def test_the_image_is_built_from_all_that_the_package_takes() -> None:
    """What the build would miss is let through to it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    folders = [*wheel["packages"], *wheel["force-include"]]
    taken = [project["project"]["readme"], *project["project"]["license-files"], *(f"{name}/**" for name in folders)]
    let_through = (ROOT / ".dockerignore").read_text().splitlines()

    assert [] == [name for name in taken if f"!{name}" not in let_through]


def test_locked_files_hold_names_versions_and_hashes_only() -> None:
    """No address of an index, so the lock serves behind any mirror; nothing without a hash."""
    for path in (ROOT / "requirements").glob("*.txt"):
        blocks = path.read_text().replace("\\\n", "").splitlines()

        assert [] == [block for block in blocks if "://" in block or block.startswith("-") or " @ " in block]
        assert [] == [block.partition(" ")[0] for block in blocks if "==" not in block or "--hash=sha256:" not in block]
