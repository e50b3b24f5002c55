"""The quick-facts card."""

import pytest

from surveylib import catalog
from surveylib.figures.facts import QuickFacts, facts_of


def test_a_card_says_what_the_catalog_knows():
    (record,) = catalog.as_records((catalog.lookup("ddpo"),))
    lines = facts_of(record, cost="much", on_policy="yes")
    assert lines["needs"] == "reward, online" and lines["on policy"] == "yes"
    assert lines["file"] == "policy_gradient.ddpo" and lines["paper"] == ("ICLR 2024", "https://arxiv.org/abs/2305.13301")
    html = QuickFacts({"DDPO <1>": lines}).html()
    assert "DDPO &lt;1&gt;" in html and 'href="https://arxiv.org/abs/2305.13301"' in html


def test_no_card():
    with pytest.raises(ValueError, match="no card"):
        QuickFacts({})
