"""The sortable table and the scatter plot with a choice of axes: right without JavaScript, alive in a real browser."""

import base64
import io
import re

import pytest
from PIL import Image

from surveylib.figures import Point, ScatterChooser, SortableTable


def table(**more):
    rows = [["plum", 2.0, None], ["apple <b>", (10, "ten", "low to high"), 1.5], ["fig", 0.25, -3]]
    return SortableTable(["name", "weight", "gain"], rows, colours=["base", "test_time", None], alt="fruit", **more)


def scatter(**more):
    points = [Point("base", {"cost": 1.0, "gain": 0.0, "kl": None}),
              Point("good & cheap", {"cost": 10.0, "gain": 2.0, "kl": 1.0}, "test_time", "square",
                    {"gain": (1.0, 3.0)}),
              Point("good and dear", {"cost": 1000.0, "gain": 2.1, "kl": 4.0}, "preference", "diamond")]
    axes = {"cost": "calls", "gain": "gain (higher is better)", "kl": "KL, nats"}
    return ScatterChooser(points, axes, x="cost", y="gain", log=("cost",), alt="gain against cost", **more)


@pytest.mark.parametrize("make", [table, scatter])
def test_stands_alone_and_has_a_png(make):
    figure = make(title="t", caption="c")
    html = figure.html()
    assert re.findall(r"""(?:src|href)=["'](?!data:)[^"']+|@import|//cdn""", html) == []
    bundle = figure._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size[0] > 100


def test_table_shows_text_and_sorts_by_value():
    body = table().body
    assert "apple &lt;b&gt;" in body and "<b>" not in body
    assert 'data-value="10">ten<small>low to high</small>' in body and "<td>–</td>" in body
    found = re.findall(r'data-value="([^"]+)">(?:plum|apple|fig)', body)
    assert found == ["plum", "apple &lt;b&gt;", "fig"]


def test_scatter_places_are_linear_or_in_powers_of_ten():
    figure = scatter()
    cost, gain, kl = (figure._axis(key) for key in ("cost", "gain", "kl"))
    at = cost["at"]  # 1, 10, 1000: a third of the way
    assert (at[1] - at[0]) / (at[2] - at[0]) == pytest.approx(1 / 3, abs=1e-3)
    assert [text for _, text in cost["ticks"]] == ["1", "10", "100", "1,000"]
    low, high = gain["bars"][1]
    assert gain["bars"][0] is None and low < gain["at"][1] < high
    assert gain["at"][1] == pytest.approx((low + high) / 2, abs=1e-3) and kl["at"][0] is None
    assert "good &amp; cheap" in figure.body


@pytest.mark.parametrize("make, message", [
    (lambda: SortableTable(["a"], [], alt="x"), "1 columns"),
    (lambda: SortableTable(["a"], [[1, 2]], alt="x"), r"rows of \[2\]"),
    (lambda: SortableTable(["a"], [[1]], colours=[], alt="x"), "0 colours for 1"),
    (lambda: SortableTable(["a"], [[1]], sort="b", alt="x"), "no column"),
    (lambda: ScatterChooser([], {"a": "a"}, x="a", y="a", alt="x"), "at least one Point"),
    (lambda: ScatterChooser([Point("p", {"a": 1})], {"a": "a"}, x="a", y="b", alt="x"), "'b' is no axis"),
    (lambda: ScatterChooser([Point("p", {"b": 1})], {"a": "a"}, x="a", y="a", alt="x"), "no point has a number"),
    (lambda: ScatterChooser([Point("p", {"a": 1}, shape="star")], {"a": "a"}, x="a", y="a", alt="x"), "shape 'star'"),
])
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def names(page):
    return page.locator("tbody tr td:first-child").all_inner_texts()


@pytest.mark.browser
def test_a_click_sorts_and_a_second_one_turns_round(opened):
    page, problems = opened(table(sort="weight"))
    assert names(page) == ["apple <b>", "plum", "fig"]
    page.get_by_role("button", name="weight").click()
    assert names(page) == ["fig", "plum", "apple <b>"]
    page.get_by_role("button", name="gain").click()
    assert names(page) == ["apple <b>", "fig", "plum"]  # what has no number stays below
    page.get_by_role("button", name="gain").press("Enter")
    assert names(page) == ["fig", "apple <b>", "plum"]
    page.get_by_role("button", name="name").click()
    page.get_by_role("button", name="name").click()
    assert names(page) == ["apple <b>", "fig", "plum"] and problems == []
    assert page.locator("th").first.get_attribute("aria-sort") == "ascending"


@pytest.mark.browser
def test_axes_are_chosen_and_what_has_no_number_is_named(opened):
    page, problems = opened(scatter())
    at = lambda n: page.locator(f"[data-point='{n}']").get_attribute("transform")  # noqa: E731
    before = at(1)
    assert page.locator(".sv-note").inner_text() == ""
    page.get_by_label("axis across").select_option("kl")
    assert at(1) != before and not page.locator("[data-point='0']").is_visible()
    assert page.locator(".sv-note").inner_text() == "Has no such number: base."
    assert "KL, nats" in page.locator(".sv-ticks").text_content() and problems == []


@pytest.mark.browser
@pytest.mark.parametrize("screen", [{}, {"viewport": {"width": 390, "height": 844}}], ids=["laptop", "phone"])
def test_names_do_not_lie_on_each_other(opened, screen):
    close = [Point(f"method {n}", {"a": 1.0 + n / 200, "b": 1.0 + n / 300}) for n in range(6)]
    points = [*close, Point("far", {"a": 2.0, "b": 2.0})]
    page, problems = opened(ScatterChooser(points, {"a": "a", "b": "b"}, x="a", y="b", alt="six close points"),
                            **screen)
    moved = page.locator("[data-point='0'] text").evaluate("e => getComputedStyle(e).transform")
    assert moved == "none", "a name stays at its point"
    boxes = [page.locator(f"[data-point='{n}'] text").bounding_box() for n in range(6)]
    for n, one in enumerate(boxes):
        for other in boxes[n + 1:]:
            apart = (one["y"] + one["height"] * 0.7 <= other["y"] or other["y"] + other["height"] * 0.7 <= one["y"]
                     or one["x"] + one["width"] <= other["x"] or other["x"] + other["width"] <= one["x"])
            assert apart, (one, other)
    assert problems == []


@pytest.mark.browser
@pytest.mark.parametrize("make", [table, scatter])
def test_fits_a_phone(opened, make):
    page, problems = opened(make(), viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") and problems == []


def test_an_axis_of_equal_numbers_has_a_middle():
    figure = ScatterChooser([Point("p", {"a": 3.0}), Point("q", {"a": 3.0})], {"a": "a"}, x="a", y="a", alt="x")
    assert figure._axis("a")["at"] == [0.5, 0.5] and len(figure._axis("a")["ticks"]) >= 2
