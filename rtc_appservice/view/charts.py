"""Stage 7: plots as SVG. Colours, fonts and sizes are the style sheet's, so they follow light and dark."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from pygal import StackedBar

_SIZE = (960, 240)


def stacked_bars(labels: Sequence[str], series: Mapping[str, Sequence[int]], description: str) -> Markup:
    """Give stacked bars, a bar a label, as SVG to stand in a page; the series have the classes `color-0` and on."""

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

    chart = StackedBar(
        width=_SIZE[0],
        height=_SIZE[1],
        css=[],
        js=[],
        disable_xml_declaration=True,
        show_legend=False,
        margin=8,
        spacing=4,
        min_scale=2,
        max_scale=5,
        value_formatter=lambda value: f"{value:.0f}",
        title=None,
        no_data_text="No calls",
    )
    chart.add_xml_filter(clean)
    # Every label would not find its place; the table beside the plot has them all.
    step = max(1, -(-len(labels) // 12))
    chart.x_labels = [label if place % step == 0 else "" for place, label in enumerate(labels)]
    for name, values in series.items():
        chart.add(name, list(values))
    return Markup(chart.render())  # noqa: S704  # made by the library, which escapes the labels
