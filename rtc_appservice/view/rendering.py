"""Stage 7: the templates of the pages, and what they write times, shares and names with."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rtc_appservice.core.model import DeviceRef
from rtc_appservice.view import words
from rtc_appservice.view.access import Names

_FOLDER = Path(__file__).parent / "templates"


def _shown(value: object) -> object:
    """Give text without what a browser would obey or what would hide its order; anything else as it is."""
    return words.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _time(at: datetime | None, form: str = "moment") -> Markup:
    """Give a time for people and for programs."""
    if at is None:
        return Markup("not known")
    text = {"moment": words.moment, "clock": words.clock, "precise": words.precise}[form](at)
    return Markup('<time datetime="{}">{}</time>').format(at.astimezone(UTC).isoformat(), text)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _link(path: str, query: Mapping[str, object]) -> str:
    """Give a path with those parts of the query that have a value."""
    given = {name: value for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


_environment = Environment(
    loader=FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=_shown,
)
_environment.filters.update(time=_time, percent=_percent, length=words.length, count_of=words.count_of)
_environment.globals.update(link=_link, words=words)


def render(template: str, names: Names, **values: Any) -> str:
    """Give a page; rooms, users and devices are called as `names` says."""

    def device(ref: DeviceRef) -> Markup:
        user_id, device_id = words.plain(names.user(ref.user_id)), words.plain(names.device(ref.user_id, ref.device_id))
        return Markup('<span class="id">{}</span> <span class="id device">{}</span>').format(user_id, device_id)

    def room(room_id: str) -> Markup:
        return Markup('<span class="id">{}</span>').format(words.plain(names.room(room_id)))

    def label(ref: DeviceRef) -> str:
        """Give a device in the width that a drawing has."""
        text = f"{names.user(ref.user_id)} {names.device(ref.user_id, ref.device_id)}"
        return text if len(text) <= _LABEL else f"{text[: _LABEL - 1]}…"

    return _environment.get_template(template).render(names=names, device=device, room=room, label=label, **values)


#: Characters of a device's name that fit beside its row in a drawing.
_LABEL = 60
