"""Files of the operator: YAML read with an error that says what to do, secrets written once."""

from pathlib import Path
from typing import Any

import yaml

from rtc_appservice.errors import ConfigError

#: Stands in files that we write or ship, where a value of the operator's belongs; nothing runs with it.
PLACEHOLDER = "replace-me"


def read_yaml(path: Path, *, command: str) -> dict[str, Any]:
    """
    Read a YAML file into its top-level keys; an empty one has none.

    Raises:
        ConfigError: if it is no such file; `command` is named as the one that writes such a file.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is not there; `rtc-appservice {command}` writes one") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path}, line {line}: not YAML: {error.problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold keys with values, such as `rtc-appservice {command}` writes")
    return {str(key): value for key, value in content.items()}


def write_secret(path: Path, text: str) -> None:
    """
    Write a file that only its owner can read.

    Raises:
        ConfigError: if it is there already; it is never overwritten.
    """
    try:
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text)
    except FileExistsError:
        raise ConfigError(f"{path} is there already and is never overwritten; move it away or name another") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
