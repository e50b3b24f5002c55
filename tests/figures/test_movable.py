"""Movable figures: self-contained, right without JavaScript, and they react in a real browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from surveylib.figures import BeforeAfter, Curve, LinePlotSlider, PictureGrid, Scrubber, SliderGrid
from surveylib.figures.lines import inside

X = np.linspace(-1, 1, 5)
SHADES = [np.full((8, 8, 3), v) for v in (0.0, 0.4, 0.8)]


def lines(**more):
    curves = [Curve("base", X**2, "base", fill=True), Curve("optimum", np.stack([X * k for k in range(3)]), "exact")]
    return LinePlotSlider(X, curves, ("beta", ["a", "b", "c"]), xlabel="x", ylabel="density", alt="two curves", **more)


MAKERS = {
    "scrubber": lambda: Scrubber(SHADES, ["t=3", "t=2", "t=1"], title="shades", caption="Three shades."),
    "slider grid": lambda: SliderGrid([SHADES, SHADES[::-1]], ("row", "ab"), ("column", [1, 2, 3]), alt="six shades"),
    "before after": lambda: BeforeAfter(SHADES[0], SHADES[2], alt="dark and light"),
    "picture grid": lambda: PictureGrid(SHADES, ["a <b>", "c", "d"], [True, False, None], columns=2, alt="shades"),
    "lines": lines,
}


@pytest.fixture(params=MAKERS)
def figure(request):
    return MAKERS[request.param]()


def spec(figure):
    return json.loads(json.dumps(figure.spec))


def test_html_needs_nothing_from_outside(figure):
    html = figure.html()
    found = re.findall(r"""(?:src|href)=["'](?!data:)[^"']+|url\(|@import|https?://|//cdn""", html)
    assert found == []


def test_every_picture_has_alternative_text(figure):
    html = figure.html()
    assert all(re.search(r'alt="[^"]+"', tag) for tag in re.findall(r"<img[^>]*>", html))
    assert re.search(r'<figure[^>]*aria-label="[^"]+"', html)


def test_every_slider_is_named(figure):
    for tag in re.findall(r"<input[^>]*>", figure.html()):
        assert 'type="range"' in tag and re.search(r'aria-label="[^"]+"', tag)


def test_png_stands_beside_the_html(figure):
    bundle = figure._repr_mimebundle_()
    assert Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).size[0] > 0


def test_two_figures_do_not_share_an_id():
    assert len({re.search(r'id="(sv\w+)"', MAKERS["scrubber"]().html())[1] for _ in range(3)}) == 3


def test_text_is_escaped():
    html = Scrubber(SHADES, ["</script>", "<b>", "&"], title="<i>x</i>").html()
    assert "<i>x" not in html and html.count("</script>") == 1


def test_alternative_text_is_required():
    with pytest.raises(ValueError, match="alt="):
        Scrubber(SHADES)


def test_first_frame_stands_without_javascript():
    figure = Scrubber(SHADES, [1, 2, 3], alt="x", start=-1)
    assert figure.spec["frames"][2] in figure.body and 'value="2"' in figure.body


def test_grid_frames_lie_in_row_order():
    figure = MAKERS["slider grid"]()
    assert spec(figure)["shape"] == [2, 3]
    frames = figure.spec["frames"]
    assert frames[0] == frames[5] and frames[1] == frames[4] and frames[0] != frames[2]


def test_lines_are_drawn_where_they_belong():
    figure = lines(ylim=(-2.0, 2.0))
    path = figure.spec["curves"][1]["d"][2]  # y = 2 x from (-1, -2) to (1, 2): corner to corner
    numbers = np.array(re.findall(r"[-\d.]+ [-\d.]+", path.replace("M", "").replace("L", " L ")))
    points = np.array([list(map(float, p.split())) for p in numbers])
    assert points[0].tolist() == [62.0, 334.0] and points[-1].tolist() == [590.0, 14.0]
    assert np.allclose(np.diff(points[:, 1]), -80)


@pytest.mark.parametrize("make, message", [
    (lambda: Scrubber(SHADES, ["one"], alt="x"), "1 labels for 3"),
    (lambda: Scrubber([], alt="x"), "at least one"),
    (lambda: SliderGrid([SHADES, SHADES[:2]], ("r", "ab"), ("c", "abc"), alt="x"), "different length"),
    (lambda: BeforeAfter(SHADES[0], np.zeros((4, 4, 3)), alt="x"), "one size"),
    (lambda: PictureGrid(SHADES, ["a"], alt="x"), "1 captions for 3"),
    (lambda: PictureGrid(SHADES, row_labels=["a"], columns=1, alt="x"), "1 row_labels for 3"),
    (lambda: LinePlotSlider(X, [Curve("c", X[:3])], ("b", "ab"), xlabel="", ylabel="", alt="x"), "3 values at 5"),
    (lambda: LinePlotSlider(X, [Curve("c", np.zeros((3, 5)))], ("b", "ab"), xlabel="", ylabel="", alt="x"), "slider"),
    (lambda: LinePlotSlider(X, [], ("b", "ab"), xlabel="", ylabel="", alt="x"), "at least one Curve"),
])
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.browser
def test_scrubber_moves_by_key_and_by_play(opened):
    page, problems = opened(MAKERS["scrubber"]())
    image, slider, said = page.locator("img"), page.locator("input"), page.locator("output")
    first = image.get_attribute("src")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert image.get_attribute("src") != first and said.inner_text() == "t=2"
    page.keyboard.press("ArrowLeft")
    assert image.get_attribute("src") == first and said.inner_text() == "t=3"
    page.locator("button").click()
    page.wait_for_function("document.querySelector('output').textContent === 't=1'")
    assert slider.input_value() == "2" and problems == []


@pytest.mark.browser
def test_both_sliders_of_the_grid_choose(opened):
    figure = MAKERS["slider grid"]()
    page, problems = opened(figure)
    for index, key in ((1, "End"), (0, "End")):
        page.locator("input").nth(index).focus()
        page.keyboard.press(key)
    assert page.locator("img").get_attribute("src") == figure.spec["frames"][5] and problems == []


@pytest.mark.browser
def test_split_handle_moves(opened):
    page, problems = opened(MAKERS["before after"]())
    page.locator("input").focus()
    page.keyboard.press("Home")
    assert page.locator(".sv-split").evaluate("e => e.style.getPropertyValue('--cut')") == "0%" and problems == []


@pytest.mark.browser
def test_curve_follows_the_slider_within_a_frame(opened):
    figure = lines(notes=["one", "two", "three"])
    page, problems = opened(figure)
    page.locator("input").focus()
    page.keyboard.press("End")
    assert page.locator("[data-line='1']").get_attribute("d") == figure.spec["curves"][1]["d"][2]
    assert page.locator("[data-line='0']").get_attribute("d") == figure.spec["curves"][0]["d"][0]
    assert page.locator(".sv-note").inner_text() == "three"
    spent = page.evaluate("""() => { const s = document.querySelector('input'), t = performance.now();
        for (let k = 0; k < 300; k++) { s.value = k % 3; s.dispatchEvent(new Event('input')); }
        return (performance.now() - t) / 300; }""")
    assert spent < 16 and problems == []


@pytest.mark.browser
def test_touch_moves_the_slider(opened):
    page, problems = opened(MAKERS["scrubber"](), viewport={"width": 390, "height": 844}, has_touch=True)
    box = page.locator("input").bounding_box()
    assert box["height"] >= 24  # room for a finger
    page.touchscreen.tap(box["x"] + box["width"] - 4, box["y"] + box["height"] / 2)
    assert page.locator("input").input_value() == "2" and problems == []


@pytest.mark.browser
def test_fits_a_phone_and_turns_dark(opened, figure):
    page, problems = opened(figure, viewport={"width": 390, "height": 844}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".sv-fig").evaluate("e => getComputedStyle(e).color") == "rgb(230, 234, 238)"
    assert problems == []


@pytest.mark.browser
def test_picture_shows_with_javascript_off(opened):
    page, _ = opened(Scrubber([np.zeros((8, 8, 3)), np.ones((8, 8, 3))], alt="x"), java_script_enabled=False)
    shot = np.asarray(Image.open(io.BytesIO(page.locator("img").screenshot())).convert("L"))
    assert np.median(shot) < 20


def test_a_curve_is_cut_where_it_leaves_the_frame_and_breaks_where_it_is_not_a_number():
    x = np.arange(7.0)
    y = np.array([0.0, 2.0, 0.0, np.nan, 1.0, 1.0, -1.0])
    pieces = inside(x, y, 0.0, 1.0)
    assert pieces == [[(0.0, 0.0), (0.5, 1.0)], [(1.5, 1.0), (2.0, 0.0)], [(4.0, 1.0), (5.0, 1.0), (5.5, 0.0)]]
    figure = LinePlotSlider(x, [Curve("a", y)], ("t", ["1"]), xlabel="x", ylabel="y", alt="a", ylim=(0.0, 1.0))
    assert figure.spec["curves"][0]["d"][0].count("M") == 3
    below_zero = LinePlotSlider(x, [Curve("a", -1 - x)], ("t", ["1"]), xlabel="x", ylabel="y", alt="a")
    assert below_zero.spec["curves"][0]["d"][0].count("L") == 6, "its own frame holds the whole curve"
    above = LinePlotSlider(x, [Curve("a", x + 9)], ("t", ["1"]), xlabel="x", ylabel="y", alt="a", ylim=(0.0, 1.0))
    assert above.spec["curves"][0]["d"] == ["M0 0"]


def test_rows_of_a_wide_grid_begin_anew_on_a_phone():
    page = PictureGrid([SHADES[0]] * 14, columns=7, alt="two rows").body
    assert "sv-half" in page and "--half:4" in page
    assert [n for n, cell in enumerate(page.split('class="sv-cell')[1:]) if cell.startswith(" sv-first")] == [0, 7]


def test_long_names_of_curves_have_room():
    def right(name: str) -> float:
        figure = LinePlotSlider(X, [Curve(name, X**2)], ("t", ["1"]), xlabel="x", ylabel="y", alt="a")
        return 700 - figure.spec["curves"][0]["at"][0][0]

    assert right("base") == 104 and right("opposite sides of it") > 20 * 7
