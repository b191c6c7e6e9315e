"""Stage 7: plots as SVG. Colours, fonts and sizes are the style sheet's, so they follow light and dark."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

from markupsafe import Markup
from pygal import Line, StackedBar

_COMMON = {
    "width": 960,
    "height": 220,
    "css": [],
    "js": [],
    "disable_xml_declaration": True,
    "show_legend": False,
    "margin": 8,
    "truncate_label": -1,
    "title": None,
    "no_data_text": "Nothing to show",
}
#: Every label would not find its place; the table beside the plots has them all.
_LABELS = 12
_TICKS = 5


def stacked_bars(labels: Sequence[str], series: Mapping[str, Sequence[int]], description: str) -> Markup:
    """Give stacked bars, a bar a label, as SVG to stand in a page; the series have the classes `color-0` and on."""
    highest = max((sum(values) for values in zip(*series.values(), strict=True)), default=0)
    step = next(step for step in _steps() if highest <= step * _TICKS)
    chart = StackedBar(**_COMMON, spacing=4, value_formatter=lambda value: f"{value:.0f}")
    chart.y_labels = list(range(0, max(1, highest) + step, step))
    return _render(chart, labels, series, description)


def share_line(labels: Sequence[str], name: str, shares: Sequence[float | None], description: str) -> Markup:
    """Give shares from 0 to 1 as a line, as SVG to stand in a page; where there is none, the line has a hole."""
    chart = Line(**_COMMON, range=(0, 1), dots_size=4, value_formatter=lambda value: f"{value:.0%}")
    chart.y_labels = [0, 0.25, 0.5, 0.75, 1]
    return _render(chart, labels, {name: shares}, description)


def _steps() -> Iterator[int]:
    """Yield 1, 2, 5, 10, 20, 50 and so on."""
    for power in count():
        yield from (10**power, 2 * 10**power, 5 * 10**power)


def _render(
    chart: Any, labels: Sequence[str], series: Mapping[str, Sequence[float | None]], description: str
) -> Markup:
    def clean(root: Any) -> Any:
        """Take out script, inline style, comments and the random id, which a strict page refuses; say what it shows."""
        for child in list(root):
            if not isinstance(child.tag, str) or child.tag == "defs":
                root.remove(child)
        for element in root.iter():
            element.attrib.pop("style", None)
        root.attrib.pop("id", None)
        root.set("role", "img")
        root.set("aria-label", description)
        return root

    chart.add_xml_filter(clean)
    step = max(1, -(-len(labels) // _LABELS))
    chart.x_labels = [label if place % step == 0 else "" for place, label in enumerate(labels)]
    for name, values in series.items():
        chart.add(name, list(values))
    return Markup(chart.render())  # noqa: S704  # made by the library, which escapes the labels
