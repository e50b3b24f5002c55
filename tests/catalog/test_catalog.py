"""The catalog: complete, consistent, and true about what runs."""

import json
import pkgutil
import re
from collections import Counter
from pathlib import Path

import pytest

from surveylib import catalog
from surveylib.techniques.registry import technique_class, technique_names

# How many papers each list of the survey's public repository holds; a card may be on two lists.
LISTS = {"RLHF": 29, "DPO": 32, "test-time": 24, "beyond": 24, "evaluation": 23, "preference modelling": 5,
         "LLM RLHF": 6, "LLM DPO": 7, "challenges": 25}
TO_COME = {"rwr", "raft", "ddpo", "dpok", "flow_grpo", "refl", "draft", "adjoint_matching", "diffusion_dpo",
           "diffusion_kto", "d3po", "rankdpo", "best_of_n", "fk_steering", "tfg", "dno", "ipgo"}


def test_every_list_of_the_survey_is_whole():
    assert Counter(name for card in catalog.cards() for name in card.lists) == LISTS


def test_the_methods_with_a_chapter_to_come_have_cards():
    assert {catalog.lookup(key).key for key in TO_COME} == TO_COME
    assert all(catalog.lookup(key).chapter for key in TO_COME)


def test_keys_are_unique_and_fit_for_file_names():
    keys = [card.key for card in catalog.cards()]
    assert len(keys) == len(set(keys))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", key) for key in keys)


@pytest.mark.parametrize("card", catalog.cards(), ids=lambda card: card.key)
def test_card_is_consistent(card):
    assert card.name and card.paper
    assert catalog.family(card.family)
    assert card.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", card.arxiv)
    assert card.year and 1950 < card.year < 2030
    if card.arxiv:  # a paper is not printed before it is on arXiv
        assert card.year >= 2000 + int(card.arxiv[:2]) - (card.venue == "CVPR")
    assert set(card.needs) <= set(catalog.NEEDS) and set(card.models) <= set(catalog.MODEL_CLASSES)
    assert set(card.lists) <= set(catalog.LISTS)
    assert card.chapter is None or card.chapter in {c.key for c in catalog.chapters()}
    assert card.status == ("runs" if card.module else "explained" if card.chapter else "planned")


@pytest.mark.parametrize("card", catalog.cards(status="runs"), ids=lambda card: card.key)
def test_what_runs_can_be_imported(card):
    found = pkgutil.resolve_name(card.module)
    assert (getattr(found, "__module__", None) or found.__name__).startswith("surveylib.")


def test_a_technique_that_runs_lives_in_its_file():
    for family in ("reward_weighted", "policy_gradient", "reward_gradient", "preference", "test_time"):
        for card in catalog.cards(family, status="runs"):
            assert card.module == technique_class(card.key).__module__  # the name alone finds it, in its family
            assert card.module.startswith(f"surveylib.techniques.{family}.")


RUNNABLE = [card for card in catalog.cards(status="runs") if card.module.startswith("surveylib.techniques.")]


@pytest.mark.parametrize("card", RUNNABLE, ids=lambda card: card.key)
def test_the_card_of_what_runs_needs_what_its_class_needs(card):
    assert set(card.needs) == set(technique_class(card.key).needs)


def test_every_technique_that_runs_has_a_card():
    assert {card.key for card in RUNNABLE} == set(technique_names())


def test_the_known_slip_of_the_public_list_is_corrected():
    assert catalog.lookup("b2_diffurl").arxiv == "2503.11240"
    assert catalog.lookup("personalized_preference").arxiv == "2501.06655"


def test_lookup_takes_names_and_keys():
    assert catalog.lookup("DDPO") is catalog.lookup("ddpo") is catalog.lookup(" ddpo ")
    assert catalog.lookup("Flow-GRPO").key == "flow_grpo"
    assert catalog.lookup("fk steering").key == "fk_steering"


def test_lookup_of_an_unknown_name_lists_near_ones():
    with pytest.raises(KeyError, match=r"ddopo.*near names.*ddpo"):
        catalog.lookup("ddopo")
    with pytest.raises(KeyError, match="policy_gradient"):
        catalog.family("policy_gradients")
    with pytest.raises(KeyError, match="techniques"):
        catalog.families("technique")
    with pytest.raises(ValueError, match="planned"):
        catalog.cards(status="done")


def test_families_and_chapters_belong_to_parts():
    parts = [part.key for part in catalog.parts()]
    assert parts == ["fundamentals", "techniques", "benchmarks", "evaluation", "challenges"]
    assert {f.part for f in catalog.families()} == set(parts)
    assert all(catalog.cards(f.key) for f in catalog.families())
    assert {c.part for c in catalog.chapters()} <= set(parts)
    assert sum(len(catalog.cards(part=p)) for p in parts) == len(catalog.cards())


def test_records_are_json_with_the_promised_keys():
    records = json.loads(json.dumps(catalog.as_records()))
    assert len(records) == len(catalog.cards())
    for record in records:
        assert {"key", "name", "family", "paper", "section", "status", "module"} <= set(record)
    assert [r["key"] for r in catalog.as_records((catalog.lookup("ddpo"),))] == ["ddpo"]


@pytest.mark.parametrize("card", catalog.cards(status="explained"), ids=lambda card: card.key)
def test_what_is_explained_is_cited_in_its_chapter(card):
    root = Path(__file__).parents[2]
    entries = (root / "book" / "references.bib").read_text(encoding="utf-8").splitlines()
    key = next(re.match(r"@\w+\{([^,]+),", line)[1] for line in entries if card.arxiv in line)
    assert key in (root / "chapters" / f"{card.chapter}.md").read_text(encoding="utf-8")
