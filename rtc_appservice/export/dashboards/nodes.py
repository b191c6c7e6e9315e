"""
The parts of PostHog's query language that our dashboards use, closed: what is not described here is a fault.

Names and values are those of PostHog's published query schema. Its nodes forbid unknown keys and so do these, so a
misspelt key is found here rather than by a tile that stays empty. Only nodes and keys that are of use are described.
"""

from typing import Annotated, Any, Literal, get_args

from msgspec import Meta, Struct, field

Display = Literal[
    "Auto",
    "ActionsLineGraph",
    "ActionsBar",
    "ActionsUnstackedBar",
    "ActionsStackedBar",
    "ActionsAreaGraph",
    "ActionsLineGraphCumulative",
    "BoldNumber",
    "ActionsPie",
    "ActionsBarValue",
    "ActionsTable",
    "WorldMap",
    "CalendarHeatmap",
    "TwoDimensionalHeatmap",
    "BoxPlot",
]
AxisFormat = Literal["numeric", "duration", "duration_ms", "percentage", "percentage_scaled", "currency", "short"]
Interval = Literal["hour", "day", "week", "month"]
MathOfProperty = Literal["avg", "sum", "min", "max", "median", "p75", "p90", "p95", "p99"]
MathOfEvents = Literal["total", "dau", "weekly_active", "monthly_active", "hogql"]
NonEmpty = Annotated[str, Meta(min_length=1)]

_MATHS_OF_PROPERTY = frozenset(get_args(MathOfProperty))


class Node(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A closed part of a query."""


class PropertyFilter(Node, frozen=True):
    """Takes the events whose property has one of the values."""

    key: str
    type: Literal["event"]
    operator: Literal["exact", "is_not", "gt", "gte", "lt", "lte", "is_set", "is_not_set"]
    value: list[str] | str | float | None = None


class EventsNode(Node, frozen=True, tag=True, tag_field="kind"):
    """One series: an event, and how its occurrences become a number."""

    event: str
    custom_name: str | None = None
    math: MathOfEvents | MathOfProperty = "total"
    math_property: str | None = None
    math_hogql: str | None = None
    properties: list[PropertyFilter] = []

    def __post_init__(self) -> None:
        """Refuse a math without what it needs; PostHog would show nothing."""
        if (self.math in _MATHS_OF_PROPERTY) != (self.math_property is not None):
            raise ValueError(f"math {self.math} with math_property {self.math_property}")
        if (self.math == "hogql") != (self.math_hogql is not None):
            raise ValueError(f"math {self.math} with math_hogql {self.math_hogql}")


class DateRange(Node, frozen=True):
    """The time a query is about, relative as in `-28d`."""

    date_from: Annotated[str, Meta(pattern="^-[0-9]+[hdwm]$")]


class Breakdown(Node, frozen=True):
    """One of several properties to break down by."""

    property: str
    type: Literal["event", "hogql"] = "event"


class BreakdownFilter(Node, frozen=True):
    """What to break a query down by."""

    breakdown: str | None = None
    breakdown_type: Literal["event", "hogql"] | None = None
    breakdown_limit: Annotated[int, Meta(ge=1)] | None = None
    breakdowns: Annotated[list[Breakdown], Meta(max_length=3)] | None = None

    def __post_init__(self) -> None:
        """Refuse both forms at once, and a breakdown of no type."""
        if (self.breakdown is None) == (self.breakdowns is None):
            raise ValueError("either breakdown or breakdowns")
        if (self.breakdown is None) != (self.breakdown_type is None):
            raise ValueError("breakdown needs breakdown_type")


class GoalLine(Node, frozen=True):
    """A line across a graph."""

    label: str
    value: float


class FormulaNode(Node, frozen=True):
    """Arithmetic on the series, which are called A, B, C and so on."""

    formula: NonEmpty
    custom_name: str | None = None


class TrendsFilter(Node, frozen=True, rename="camel"):
    """How a trend is drawn."""

    display: Display | None = None
    formula: NonEmpty | None = None
    formulas: list[NonEmpty] | None = None
    formula_nodes: list[FormulaNode] | None = None
    aggregation_axis_format: AxisFormat | None = None
    decimal_places: int | None = None
    goal_lines: list[GoalLine] | None = None
    show_legend: bool | None = None

    def all_formulas(self) -> list[str]:
        """Give every formula, in whatever form it was written."""
        nodes = [node.formula for node in self.formula_nodes or ()]
        return [*nodes, *(self.formulas or ()), *([self.formula] if self.formula else ())]


class TrendsQuery(Node, frozen=True, tag=True, tag_field="kind", rename="camel"):
    """Series over time, or their total."""

    series: Annotated[list[EventsNode], Meta(min_length=1, max_length=26)]
    interval: Interval | None = None
    date_range: DateRange | None = None
    breakdown_filter: BreakdownFilter | None = None
    trends_filter: TrendsFilter | None = None
    properties: list[PropertyFilter] = []


class FunnelsFilter(Node, frozen=True, rename="camel"):
    """How a funnel counts."""

    funnel_viz_type: Literal["steps", "time_to_convert", "trends"] | None = None
    funnel_window_interval: Annotated[int, Meta(ge=1)] | None = None
    funnel_window_interval_unit: Literal["second", "minute", "hour", "day", "week", "month"] | None = None
    funnel_order_type: Literal["strict", "unordered", "ordered"] | None = None
    aggregate_by: str | None = field(default=None, name="funnelAggregateByHogQL")  #: counts calls by any property


class FunnelsQuery(Node, frozen=True, tag=True, tag_field="kind", rename="camel"):
    """How many calls came from one event to the next."""

    series: Annotated[list[EventsNode], Meta(min_length=2)]
    date_range: DateRange | None = None
    breakdown_filter: BreakdownFilter | None = None
    funnels_filter: FunnelsFilter | None = None
    properties: list[PropertyFilter] = []


class InsightVizNode(Node, frozen=True, tag=True, tag_field="kind"):
    """A trend or funnel as a tile."""

    source: TrendsQuery | FunnelsQuery


class HogQLQuery(Node, frozen=True, tag=True, tag_field="kind"):
    """A query in PostHog's SQL."""

    query: NonEmpty


class Axis(Node, frozen=True):
    """A column on an axis."""

    column: NonEmpty
    settings: dict[str, Any] | None = None


class ChartSettings(Node, frozen=True, rename="camel"):
    """Which columns of a query go where."""

    x_axis: Axis | None = None
    y_axis: list[Axis] | None = None
    series_breakdown_column: str | None = None
    goal_lines: list[GoalLine] | None = None


class DataVisualizationNode(Node, frozen=True, tag=True, tag_field="kind", rename="camel"):
    """A query in SQL as a tile."""

    source: HogQLQuery
    display: Display | None = None
    chart_settings: ChartSettings | None = None


Query = InsightVizNode | DataVisualizationNode
