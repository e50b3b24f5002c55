import json
import re

import numpy as np
import pytest

from surveylib.figures import data_address, to_png
from surveylib.figures.grid_slider import GridSlider

RED, BLUE = np.zeros((8, 8, 3)), np.zeros((8, 8, 3))
RED[..., 0], BLUE[..., 2] = 1, 1
SLIDER = ("N", [1, 2])


def spec_of(figure):
    return json.loads(re.search(r'\("sg\w+"\),(\{.*\})\);</script>', figure.html()).group(1))


def test_equal_pictures_are_stored_once_and_every_position_finds_its_own():
    spec = spec_of(GridSlider([[RED, BLUE], [BLUE, BLUE]], slider=SLIDER, alt="x"))
    assert len(spec["frames"]) == 2
    shown = [[spec["frames"][k] for k in row] for row in spec["at"]]
    red, blue = data_address(to_png(RED)), data_address(to_png(BLUE))
    assert shown == [[red, blue], [blue, blue]]


def test_the_start_position_stands_without_javascript():
    figure = GridSlider([[RED], [BLUE]], ["a disc"], [[False], [True]], slider=SLIDER, start=1, notes=["no", "yes"],
                        alt="x")
    page = re.sub(r"<script>.*?</script>", "", figure.html(), flags=re.DOTALL)
    assert data_address(to_png(BLUE)) in page and data_address(to_png(RED)) not in page
    assert "a disc, passes" in page and ">yes</p>" in page


def test_numbers_that_differ_are_named():
    with pytest.raises(ValueError, match="pictures must hold 2 cells"):
        GridSlider([[RED, BLUE], [RED]], slider=SLIDER, alt="x")
    with pytest.raises(ValueError, match="passed must hold 1 cells"):
        GridSlider([[RED], [BLUE]], passed=[[True]], slider=SLIDER, alt="x")
    with pytest.raises(ValueError, match="2 captions for 1 cells"):
        GridSlider([[RED], [BLUE]], ["a", "b"], slider=SLIDER, alt="x")


def test_an_alternative_text_is_asked_for():
    with pytest.raises(ValueError, match="alt="):
        GridSlider([[RED], [BLUE]], slider=SLIDER)


@pytest.mark.parametrize(("columns", "phone"), [(4, None), (5, 3), (6, 3), (7, 4), (8, 4)])
def test_many_columns_are_halved_on_a_phone(columns, phone):
    page = GridSlider([[RED] * columns, [BLUE] * columns], slider=SLIDER, columns=columns, alt="x").html()
    grid = re.search(r'<div class="sv-grid([^"]*)" style="([^"]*)"', page)
    assert (grid[1].split() == ["sv-half"]) == (phone is not None)
    assert phone is None or grid[2].endswith(f"--half:{phone}")
