"""The file behind `Config`: read with every fault reported at once, and written once with a comment for each key."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import SettingsError

from rtc_appservice.config import ENV_DELIMITER, ENV_PREFIX, Config, Homeserver
from rtc_appservice.errors import ConfigError
from rtc_appservice.files import read_yaml, write_secret

#: Set by the command line or the operator to say which file to read; not a key of the configuration.
PATH_VARIABLE = f"{ENV_PREFIX}CONFIG"


def load_config(path: Path) -> Config:
    """
    Read a file and the environment of the process into a `Config`.

    Relative paths in the file start at the file's folder, those in the environment at the working directory.

    Raises:
        ConfigError: with every fault, each on its own line beginning with the key.
    """
    faults = [_unknown_variable(name) for name in sorted(os.environ) if _is_unknown(name)]
    try:
        config = Config(**_from_file(path))
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        faults += [fault for details in found for fault in _faults(details)]
    except SettingsError:
        if not faults:  # a section as one variable is unknown as such
            raise
    else:
        if not faults:
            return config
    raise ConfigError("\n".join([f"{path} cannot be used:", *(f"  {fault}" for fault in faults)]))


def write_config(path: Path, *, address: str | None = None, domain: str | None = None) -> None:
    """
    Write a commented configuration with a fresh deployment secret, readable by its owner alone.

    Raises:
        ConfigError: if a value cannot be one, or if the file is there already; it is never overwritten.
    """
    try:
        Homeserver(address=address or "http://localhost", domain=domain or "localhost")
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        faults = [f"--{details['loc'][0]}: {details['msg'].removeprefix('Value error, ')}" for details in found]
        raise ConfigError("\n".join([f"{path} is not written:", *(f"  {fault}" for fault in faults)])) from error
    values = {"homeserver.address": address, "homeserver.domain": domain, "secret": secrets.token_urlsafe(32)}
    write_secret(path, render_config({key: value for key, value in values.items() if value is not None}))


def render_config(values: Mapping[str, str]) -> str:
    """Give the text of a configuration: every key with its comment, `values` by dotted key instead of the defaults."""
    lines = [
        "# Configuration of rtc-appservice. A key can also be set in the environment, which wins:",
        f"# homeserver.domain as {_variable('homeserver.domain')}. Relative paths start at this file's folder.",
        "",
    ]
    for name, field in Config.model_fields.items():
        section = _section(field)
        if section is None:
            lines += [*_entry(name, field, values.get(name)), ""]
            continue
        lines += [f"# {(section.__doc__ or '').strip()}", f"{name}:"]
        for key, inner in section.model_fields.items():
            lines += [f"  {line}" for line in _entry(key, inner, values.get(f"{name}.{key}"))]
        lines.append("")
    return "\n".join(lines)


def _entry(key: str, field: FieldInfo, value: str | None) -> Iterator[str]:
    """Yield the lines of one key: its comment and its value, commented out where there is none."""
    yield from (f"# {line}" for line in wrap(field.description or "", 100))
    example = (field.examples or [None])[0]
    if value is None and field.default is not PydanticUndefined:
        value = str(field.default) if isinstance(field.default, Path) else field.default
    elif value is None:
        value = example
    if value is None:
        yield f"#{key}: {example or ''}".rstrip()
    else:
        yield f"{key}: {json.dumps(value, ensure_ascii=False)}"


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _from_file(path: Path) -> dict[str, Any]:
    """Give the file's keys with paths made absolute, those that it leaves to their defaults too."""
    content = _given(read_yaml(path, command=f"config {path}"))
    for name, key, default in _default_paths():
        section = content.setdefault(name, {})
        if isinstance(section, dict):
            section.setdefault(key, str(default))
    return {name: _absolute(name, value, path.absolute().parent) for name, value in content.items()}


def _given(content: dict[str, Any]) -> dict[str, Any]:
    """Give the keys that have a value, in sections too; one without says no more than one that is commented out."""
    return {
        name: _given(value) if isinstance(value, dict) else value
        for name, value in content.items()
        if value is not None
    }


def _default_paths() -> Iterator[tuple[str, str, Path]]:
    """Yield section, key and value of every path that has a default."""
    for name, field in Config.model_fields.items():
        section = _section(field)
        for key, inner in section.model_fields.items() if section else ():
            if isinstance(inner.default, Path):
                yield name, key, inner.default


def _absolute(key: str, value: Any, folder: Path) -> Any:
    """Give a value of the file with the paths in it starting at the file's folder."""
    if isinstance(value, dict):
        return {str(inner): _absolute(str(inner), content, folder) for inner, content in value.items()}
    is_path = key.endswith("_file") or key in {path_key for _, path_key, _ in _default_paths()}
    return folder / value if is_path and isinstance(value, str) else value


def _keys() -> Iterator[str]:
    """Yield every key of the configuration, dotted."""
    for name, field in Config.model_fields.items():
        section = _section(field)
        yield from [name] if section is None else (f"{name}.{key}" for key in section.model_fields)


def _variable(key: str) -> str:
    return ENV_PREFIX + key.upper().replace(".", ENV_DELIMITER)


def _is_unknown(name: str) -> bool:
    known = {PATH_VARIABLE, *map(_variable, _keys())}
    return name.upper().startswith(ENV_PREFIX) and name.upper() not in known


def _unknown_variable(name: str) -> str:
    known = [_variable(key).removeprefix(ENV_PREFIX) for key in _keys()]
    close = get_close_matches(name.upper().removeprefix(ENV_PREFIX), known, n=1)
    return f"{name}: unknown environment variable; {f'did you mean {ENV_PREFIX}{close[0]}?' if close else 'remove it'}"


def _unknown_key(key: str) -> str:
    # Within a section most names are alike by the section's own.
    close = get_close_matches(key, list(_keys() if "." in key else Config.model_fields), n=1, cutoff=0.8)
    return f"{key}: unknown key; {f'did you mean {close[0]}?' if close else 'remove it'}"


#: What is wrong, by pydantic's name of the fault: its own words are for programmers.
_WORDS = {
    "string_type": "must be text; put it in quotes",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": 'must be a list, as in ["a", "b"]',
    "path_type": "must be the path of a file",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "must be a whole number"),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), "must be a number"),
}


def _faults(details: ErrorDetails) -> Iterator[str]:
    """Yield one fault as lines for the operator: the key, what is wrong, what to do. Never the value."""
    key = ".".join(str(part) for part in details["loc"])
    section = _section(Config.model_fields[key]) if key in Config.model_fields else None
    if details["type"] == "missing":
        for missing in [key] if section is None else _required(key, section):
            yield f"{missing}: is missing; set it in the file or as {_variable(missing)}"
    elif details["type"] == "extra_forbidden":
        yield _unknown_key(key)
    elif details["type"] == "value_error":
        yield f"{key}: {details['msg'].removeprefix('Value error, ')}"
    elif section is not None:
        yield f"{key}: must hold keys, indented below it: {', '.join(section.model_fields)}"
    else:
        unknown = "cannot be read; `rtc-appservice config` writes every key in its form"
        limits = {name: _plain(value) for name, value in details.get("ctx", {}).items()}
        words = _WORDS.get(details["type"], unknown).format(**limits).replace("'", "")
        yield f"{key}: {words}{_default(key)}"


def _required(name: str, section: type[BaseModel]) -> list[str]:
    """Give the keys of a section that have no default."""
    return [f"{name}.{key}" for key, field in section.model_fields.items() if field.is_required()]


def _default(key: str) -> str:
    """Say what a key is where nothing is set, if that is a number."""
    name, _, inner = key.partition(".")
    section = _section(Config.model_fields[name])
    default = section.model_fields[inner].default if section and inner in section.model_fields else None
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    return f"; the default is {_plain(default)}" if is_number else ""


def _plain(value: Any) -> Any:
    """Give a number without the `.0` of a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
