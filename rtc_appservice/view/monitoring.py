"""Stage 7: the rules for Prometheus and the boards for Grafana that come with the service, as files to write out."""

from pathlib import Path
from typing import Literal

import rtc_appservice
from rtc_appservice.errors import InputError

#: What the files are for; the folder they are shipped in.
Kind = Literal["prometheus", "grafana"]


def monitoring_folder() -> Path:
    """Give the folder of the files: inside the installed package, or at the top level of the repository."""
    package = Path(rtc_appservice.__file__).parent
    installed = package / "monitoring"
    return installed if installed.is_dir() else package.parent / "monitoring"


def monitoring_files(kind: Kind) -> dict[Path, str]:
    """Give the files of one kind with their content, under their paths in the folder of that kind."""
    folder = monitoring_folder() / kind
    paths = sorted(path for path in folder.rglob("*") if path.suffix in (".yml", ".json"))
    return {path.relative_to(folder): path.read_text() for path in paths}


def write_monitoring(kind: Kind, folder: Path, *, replace: bool = False) -> list[Path]:
    """
    Write the files of one kind into a folder, which is made; give what was written, nothing where all was the same.

    Raises:
        InputError: if a file is there already with other content, unless `replace`; then nothing is written.
    """
    files = {folder / name: content for name, content in monitoring_files(kind).items()}
    try:
        other = [path for path, content in files.items() if not path.exists() or path.read_text() != content]
        changed = [str(path) for path in other if path.exists()]
        if changed and not replace:
            raise InputError(f"These files are there already with other content: {', '.join(changed)}")
        for path in other:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The files cannot be written to {folder} ({error})") from error
    return other
