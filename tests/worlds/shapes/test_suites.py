import json

import numpy as np
import pytest
import torch

from surveylib.worlds.shapes.data import scene_for
from surveylib.worlds.shapes.judge import Verdict
from surveylib.worlds.shapes.prompts import ALL_CATEGORIES, CATEGORIES, Group, Spec, is_held_out, parse
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.suites import (
    OVERALL,
    SUITES,
    SuitePrompt,
    clustered_rate,
    drawer,
    picture_seed,
    score_model,
    suite,
    tabulate,
    write_rows,
)


@pytest.mark.parametrize("name", SUITES)
def test_prompts_belong_to_their_suite_and_category(name):
    prompts = suite(name, 40)
    for prompt in prompts:
        assert parse(prompt.text).key == prompt.spec.key and prompt.spec.category == prompt.category
        assert prompt.spec.unseen_pair == (name == "generalisation")
        if name != "generalisation":
            assert is_held_out(prompt.spec) == (name == "held-out")
    assert len({(p.text, p.repeat) for p in prompts}) == len(prompts)
    wanted = ALL_CATEGORIES if name != "generalisation" else ("counting", "colours", "colour attribution", "size")
    assert [p.category for p in prompts] == [c for c in ALL_CATEGORIES if c in wanted for _ in range(40)]


def test_the_held_out_suite_is_large_and_mostly_of_unique_texts():
    prompts = suite("held-out")
    assert sum(p.category in CATEGORIES for p in prompts) >= 600
    for category in ALL_CATEGORIES:
        texts = [p.text for p in prompts if p.category == category]
        assert category == "single object" or len(set(texts)) == len(texts), category
    assert prompts == suite("held-out") != suite("held-out", seed=1)


def test_unknown_suites_list_what_exists():
    with pytest.raises(ValueError, match="train, held-out, generalisation"):
        suite("test")
    with pytest.raises(ValueError, match="at least 1"):
        suite("train", 0)


def made(passed):
    return Verdict(passed, {"shape 1": float(passed)}, float(passed), True, "" if passed else "wrong")


@pytest.mark.truth
def test_overall_is_the_mean_of_six_rates_whatever_their_sizes():
    prompts, verdicts = [], []
    for k, category in enumerate(ALL_CATEGORIES):
        for i in range(4 * (k + 1)):
            prompts.append(SuitePrompt(f"{category} {i // 4}", Spec((Group("circle"),)), category))
            verdicts.append(made(i < 2 * k))
    table = tabulate(verdicts, prompts)
    rates = [2 * k / (4 * (k + 1)) for k in range(7)]
    assert [table[c].rate for c in ALL_CATEGORIES] == pytest.approx(rates)
    assert table[OVERALL].rate == pytest.approx(np.mean(rates[:6])) and table[OVERALL].n == 4 * 21
    with pytest.raises(ValueError, match="1 verdicts"):
        tabulate(verdicts[:1], prompts)
    with pytest.raises(ValueError, match="no pictures"):
        tabulate([], [])


@pytest.mark.truth
def test_clustered_error_is_the_binomial_one_of_the_clusters_when_pictures_agree():
    rng = np.random.default_rng(0)
    by_prompt = rng.random(400) < 0.3
    names = [str(i) for i in range(400)]
    alone = clustered_rate(list(by_prompt), names)
    p = by_prompt.mean()
    assert alone.standard_error == pytest.approx((p * (1 - p) / 399) ** 0.5)
    fourfold = clustered_rate(list(np.repeat(by_prompt, 4)), list(np.repeat(names, 4)))
    assert fourfold.n == 1600 and fourfold.standard_error == pytest.approx(alone.standard_error)
    pictures = rng.random(1600) < 0.3  # independent pictures: the usual error
    free = clustered_rate(list(pictures), list(np.repeat(names, 4)))
    assert free.standard_error == pytest.approx((0.3 * 0.7 / 1600) ** 0.5, rel=0.15)
    assert np.isnan(clustered_rate([True, False], ["a", "a"]).standard_error)


def perfect(prompts, generators):
    """Draws what is asked; the layout comes from the picture's generator."""
    seeds = [int(torch.randint(2**31, (), generator=g)) for g in generators]
    return render([scene_for(parse(text), np.random.default_rng(seed)) for text, seed in zip(prompts, seeds)])


def test_a_perfect_model_passes_and_a_constant_one_does_not(tmp_path):
    prompts = suite("held-out", 3)
    good = score_model(perfect, prompts, pictures_per_prompt=2)
    assert good.table[OVERALL].rate == 1.0 and good.quality > 0.95 and len(good.rows) == 2 * len(prompts)
    write_rows(good.rows, tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == good.rows and {"tag", "prompt", "correct", "reason", "metadata"} <= set(rows[0])
    assert len({row["metadata"] for row in rows}) == len(prompts)
    blank = score_model(lambda texts: torch.ones(len(texts), 3, 64, 64), prompts, pictures_per_prompt=1)
    assert blank.table[OVERALL].rate == 0.0 and blank.quality == 0.0
    assert all("0 things" in row["reason"] for row in blank.rows)


def test_pictures_depend_on_seed_prompt_and_number_alone():
    prompts = suite("train", 2)
    shown = {}

    def spy(texts, generators):
        pictures = perfect(texts, generators)
        for text, picture in zip(texts, pictures):
            shown.setdefault(text, []).append(picture)
        return pictures

    first = score_model(spy, prompts, 2, batch=5)
    drawn, shown = shown, {}
    again = score_model(spy, prompts[::-1], 2, batch=3)
    assert all(torch.equal(a, b) for text in drawn for a, b in zip(drawn[text], shown[text]))
    assert first.table == again.table
    assert not torch.equal(*drawn[prompts[0].text])
    seeds = {picture_seed(s, p, k) for s in (0, 1) for p in prompts for k in range(3)}
    assert len(seeds) == 6 * len(prompts) and max(seeds) < 2**63


def test_what_cannot_draw_is_refused():
    with pytest.raises(TypeError, match="DiffusionModel"):
        drawer(3)
    with pytest.raises(ValueError, match="plain function"):
        drawer(perfect, steps=5)
    with pytest.raises(ValueError, match="at least 1"):
        score_model(perfect, suite("train", 1), 0)
    with pytest.raises(ValueError, match="pictures"):
        score_model(lambda texts: torch.zeros(len(texts), 3, 32, 32), suite("train", 1), 1)


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sd3"])
def test_a_model_and_its_plain_pipeline_draw_the_same_pictures_in_any_batch(name):
    from surveylib.diffusion.pipelines import from_pipeline
    from surveylib.diffusion.tiny import tiny_pipeline

    pipeline = tiny_pipeline(name)
    texts = ["a circle", "two stars", "a ring"]

    def generators():
        return [torch.Generator().manual_seed(s) for s in (5, 6, 7)]

    ours = drawer(from_pipeline(pipeline), steps=3, guidance=4.0)
    together = ours(texts, generators())
    plain = drawer(pipeline, steps=3, guidance=4.0)(texts, generators())
    torch.testing.assert_close(together.clamp(0, 1), plain, atol=2e-3, rtol=0)
    alone = ours(texts[1:2], generators()[1:2])
    torch.testing.assert_close(alone[0], together[1], atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.01
