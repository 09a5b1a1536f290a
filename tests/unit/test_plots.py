from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmrouter.plots import theme
from llmrouter.plots.axes import Frame
from llmrouter.plots.charts import Axis, Series, Spot, line_chart, scatter_chart
from llmrouter.plots.heat import Heat, Strand, heat_chart, legend
from llmrouter.plots.labels import placed
from llmrouter.plots.marks import marker, path, simplified, staircase
from llmrouter.plots.markup import MISSING, Markup, change, el, figure, join, num, seconds, signed, tick
from llmrouter.plots.raster import LEVELS, heat_uri, thinned
from llmrouter.plots.scales import Linear, Log, linear, linear_ticks, log, nice_step, spread
from llmrouter.plots.strips import WHOLE, ruler, strip

finite = st.floats(-1e6, 1e6, allow_nan=False)


class Tags(HTMLParser):
    """Counts tags and checks that every one that opens is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.seen.append(tag)
        self.attributes.append(dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(markup: str) -> Tags:
    found = Tags()
    found.feed(markup)
    assert found.open == []
    return found


def test_what_is_not_markup_is_escaped() -> None:
    assert el("b", "<i>&", title='"<') == '<b title="&quot;&lt;">&lt;i&gt;&amp;</b>'
    assert el("b", Markup("<i></i>")) == "<b><i></i></b>"
    assert join(["<", None, Markup("<hr>")]) == "&lt;<hr>"


def test_attributes_are_named_after_the_keyword_and_left_out_when_off() -> None:
    assert el("td", class_="a", data_t="b", hidden=True, title=None, open=False, x=1.25) == (
        '<td class="a" data-t="b" hidden x="1.2"></td>'
    )
    assert el("circle", r=0.5) == '<circle r=".5"/>'
    assert el("input", type="search") == '<input type="search">'


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.04, "0"), (12.0, "12"), (0.5, ".5"), (-0.5, "-.5"), (100.0, "100"), (10.06, "10.1")],
)
def test_coordinates_are_short(value: float, text: str) -> None:
    assert num(value) == text


def test_a_coordinate_that_is_no_number_does_not_break_the_page() -> None:
    assert num(math.nan) == num(math.inf) == "0"


@given(finite)
def test_a_coordinate_reads_back(value: float) -> None:
    assert float(num(value)) == pytest.approx(value, abs=0.0501)


def test_figures_keep_three_digits_and_say_when_they_are_unknown() -> None:
    assert [figure(value) for value in (0.0, 1234.4, 12.34, 0.01234, -5.0, 9.999)] == [
        *("0", "1,234", "12.3", "0.0123", "−5.00"),
        "10.0",
    ]
    assert figure(None) == figure(math.nan) == MISSING
    assert figure(12_345_678.0) == "1.23e7"


def test_changes_carry_their_sign_and_their_interval() -> None:
    assert change(-9.14, 0.4) == "−9.1 ± 0.4 %"
    assert change(3.0, None) == "+3.0 %"
    assert change(None, 1.0) == MISSING
    assert [signed(value) for value in (0.04, -0.04, 1.0)] == ["0.0", "0.0", "+1.0"]


def test_times_come_in_the_unit_that_reads_best() -> None:
    assert [seconds(value) for value in (0.0123, 1.5, 0.0, None)] == ["12.3 ms", "1.50 s", "0 s", MISSING]


def test_ticks_are_written_short() -> None:
    assert [tick(value) for value in (0.5, -10.0, 100000.0, 0.00001)] == ["0.5", "−10", "1e5", "1e−5"]


@given(finite, finite)
def test_a_linear_scale_holds_its_figures(one: float, other: float) -> None:
    scale = linear([one, other], (0.0, 100.0))
    assert -1e-6 <= scale(min(one, other)) <= scale(max(one, other)) <= 100 + 1e-6


def test_a_scale_told_to_begin_at_zero_begins_there() -> None:
    assert linear([2.0, 10.0], (0.0, 1.0), include=(0.0,)).domain[0] == 0.0
    assert linear([-2.0, 10.0], (0.0, 1.0), include=(0.0,)).domain[0] < -2.0


@pytest.mark.parametrize("values", [[], [None], [math.nan], [3.0], [0.0, 0.0]])
def test_scales_of_next_to_nothing_are_scales(values: list[float | None]) -> None:
    for scale in (linear(values, (0.0, 100.0)), log(values, (0.0, 100.0))):
        assert scale.domain[0] < scale.domain[1]
        assert all(math.isfinite(scale(value)) for value in scale.ticks())


def test_a_logarithmic_scale_has_equal_steps_for_equal_ratios() -> None:
    scale = Log((1.0, 100.0), (0.0, 10.0))
    assert [round(scale(value), 9) for value in (1, 10, 100)] == [0, 5, 10]
    assert scale.ticks(3) == [1, 3, 10, 30, 100]


@given(st.floats(1e-3, 1e3), st.floats(1.5, 1e6))
def test_logarithmic_ticks_lie_within_and_are_few(low: float, ratio: float) -> None:
    scale = Log((low, low * ratio), (0.0, 100.0))
    ticks = scale.ticks(5)
    assert all(low * (1 - 1e-6) <= value <= low * ratio * (1 + 1e-6) for value in ticks)
    assert len(ticks) <= 10


def test_linear_ticks_are_round() -> None:
    assert linear_ticks((0.0, 1.0), 5) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear_ticks((-17.0, 38.0), 5) == [-10.0, 0.0, 10.0, 20.0, 30.0]
    assert nice_step(0.0) == nice_step(math.inf) == 1.0


def test_spread_is_of_positive_figures() -> None:
    assert spread([None, 0.0, 2.0, 8.0]) == 4.0
    assert spread([]) == 1.0


def test_a_path_is_written_in_differences_without_drift() -> None:
    assert path([(0, 0), (10, 5.2), (10, 5.2), (20, 0)]) == "M0 0l10 5 10-5"
    assert path([]) == ""


def test_points_on_a_line_are_dropped_and_corners_kept() -> None:
    points = [(float(x), 0.0) for x in range(50)] + [(50.0, 30.0), (60.0, 30.0)]
    assert simplified(points) == [(0.0, 0.0), (49.0, 0.0), (50.0, 30.0), (60.0, 30.0)]


@given(st.lists(st.floats(0, 200), min_size=2, max_size=60))
def test_a_simplified_line_stays_close(heights: list[float]) -> None:
    points = [(float(x), y) for x, y in enumerate(heights)]
    kept = simplified(points, 0.5)
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    for (x1, y1), (x2, y2) in itertools.pairwise(kept):
        for x, y in points:
            if x1 <= x <= x2:
                on_line = y1 + (y2 - y1) * (x - x1) / (x2 - x1)
                slope = math.hypot(1.0, (y2 - y1) / (x2 - x1))
                assert abs(y - on_line) / slope <= 0.5 + 1e-6


def test_a_front_goes_in_stairs() -> None:
    assert staircase([(0, 0), (2, 3)]) == [(0, 0), (2, 0), (2, 3)]
    assert staircase([]) == []


@pytest.mark.parametrize("shape", theme.SHAPES)
def test_every_shape_of_the_theme_can_be_drawn(shape: str) -> None:
    assert len(tags(marker((1, 1), shape=shape)).seen) == 1


def test_slots_differ_in_hue_or_dash_or_shape() -> None:
    looks = {(slot % theme.HUES, theme.shape_of(slot)) for slot in range(24)}
    assert len(looks) == 24
    assert [theme.series_slot(place) for place in (0, 6, 7, 20, 21)] == [1, 7, 9, 23, 1]
    assert "on" not in theme.slot_class(3, on=False)


@pytest.mark.parametrize(("hues", "page"), [(theme.LIGHT_HUES, "#ffffff"), (theme.DARK_HUES, theme.DARK["page"])])
def test_hues_stand_out_from_their_background(hues: tuple[str, ...], page: str) -> None:
    def luminance(colour: str) -> float:
        parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    assert min(contrast(hue, page) for hue in hues) >= 3.0


def test_a_heat_map_is_a_picture_with_a_pixel_per_figure() -> None:
    png = base64.b64decode(heat_uri([[0.0, 1.0, None], [2.0, 0.5, -1.0]], 1.0).removeprefix("data:image/png;base64,"))
    assert struct.unpack(">II", png[16:24]) == (3, 2)
    at = png.index(b"IDAT")
    lines = zlib.decompress(png[at + 4 : at + 4 + int.from_bytes(png[at - 4 : at], "big")])
    assert list(lines) == [0, 0, LEVELS - 1, LEVELS, 0, LEVELS - 1, round(0.5 * (LEVELS - 1)), 0]


def test_a_heat_map_needs_rows_of_one_length() -> None:
    broken: tuple[list[list[float]], ...] = ([], [[]], [[1.0], [1.0, 2.0]])
    for rows in broken:
        with pytest.raises(ValueError, match="rows of one length"):
            heat_uri(rows, 1.0)


def test_thinning_keeps_means_and_gaps() -> None:
    assert thinned([[1.0, 3.0, None, None]], 2) == [[2.0, None]]
    assert thinned([[1.0, 3.0]], 5) == [[1.0, 3.0]]


def test_names_do_not_cover_one_another() -> None:
    frame = Frame()
    found = placed(["one", "two"], [(100.0, 100.0), (101.0, 100.0)], frame, wanted=[True, True])
    assert found[0] != found[1]
    crowd = placed([f"a long name {index}" for index in range(40)], [(200.0, 100.0)] * 40, frame, wanted=[True] * 40)
    assert None in crowd


def test_a_line_chart_says_what_it_shows_and_draws_every_series() -> None:
    series = [
        Series("a<b", 1, ((0.5, 1.0), (0.8, 2.0)), lows=(0.9, None), highs=(1.1, None)),
        Series("c", 2, ((0.5, 3.0), (0.8, 0.0)), on=False),
    ]
    chart = line_chart(
        series, title="E2E & more", description="why", x=Axis("load", at=(0.5, 0.8)), y=Axis("s", log=True)
    )
    found = tags(chart)
    assert found.seen[:3] == ["svg", "title", "desc"]
    assert "<title>E2E &amp; more</title>" in chart
    assert "a&lt;b: 0.500, 1.00" in chart
    assert "a<b" not in chart
    classes = [one.get("class") for one in found.attributes]
    assert {theme.slot_class(1), theme.slot_class(2, on=False)} <= set(classes)
    assert found.seen.count("circle") == 3  # the figure that is not positive has no place on a logarithmic axis


def test_a_line_chart_without_a_series_is_an_empty_plot() -> None:
    assert "axis" in line_chart([], title="t", description="d", x=Axis("x"), y=Axis("y"))


def test_a_limit_cuts_lines_off_at_the_frame() -> None:
    series = [Series("a", 1, ((0.0, 1.0), (1.0, 900.0)))]
    chart = line_chart(series, title="t", description="d", x=Axis("x"), y=Axis("y"), limit=(0.0, 10.0))
    assert tags(chart).seen.count("svg") == 2


def test_a_scatter_names_points_and_draws_front_and_identity() -> None:
    spots = [Spot("one", 1, 1.0, 2.0), Spot("two", 2, 2.0, 1.0, solid=False)]
    chart = scatter_chart(
        spots, title="t", description="d", x=Axis("x"), y=Axis("y"), front=[(1.0, 2.0), (2.0, 1.0)], identity=True
    )
    assert ">one</text>" in chart
    assert 'class="front"' in chart
    assert 'class="ref"' in chart
    assert "hollow" in chart


def test_a_strip_is_hollow_where_its_interval_includes_zero() -> None:
    scale = Linear((-10.0, 10.0), WHOLE)
    assert "hollow" in strip(scale, -1.0, half_width=2.0, slot=1)
    assert "hollow" in strip(scale, -1.0, half_width=None, slot=1)
    assert "hollow" not in strip(scale, -3.0, half_width=2.0, slot=1)
    assert "▶" in strip(scale, 300.0, half_width=2.0, slot=1)


def test_a_ruler_keeps_its_figures_apart_and_names_zero() -> None:
    text = ruler(Linear((-1000.0, 50.0), WHOLE), rows=3)
    assert ">0</text>" in text
    assert tags(text).seen.count("text") < 8


def test_heat_charts_share_a_time_axis() -> None:
    rows: list[list[float | None]] = [[0.0, 0.5, 1.0], [1.0, None, 0.0]]
    chart = heat_chart(
        [Heat("KV <usage>", rows, 1.0, "0–100 %"), Strand("held", [0.0, 1.0, None], 1.0)],
        [0.0, 1.0, 2.0],
        title="t",
        description="d",
        row_names=["0", "1"],
    )
    found = tags(chart)
    assert found.seen.count("image") == 1
    assert "KV &lt;usage&gt;" in chart
    assert tags(legend("0", "1")).seen.count("image") == 1
