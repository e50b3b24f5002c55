"""Toy twins: valid records, a function of the seed, splits kept apart, labels that follow the utilities."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from surveylib.feedback.pairs import to_pairs
from surveylib.feedback.records import decode_picture, encode_picture, read_records
from surveylib.worlds.shapes.annotators import Annotator, Pool, gold_utility, make_pool
from surveylib.worlds.shapes.answers import AnswerSheet, Shown
from surveylib.worlds.shapes.looks import look
from surveylib.worlds.shapes.preferences import SMALL, TWINS, main, make_twin, prompts_of
from surveylib.worlds.shapes.prompts import is_held_out, parse
from surveylib.worlds.shapes.render import render
from surveylib.worlds.shapes.scenes import Scene, Thing
from surveylib.worlds.shapes.sources import Hand, Mixture, ModelSamples, Pictures, Renderings

PLAIN = Renderings()
KIND = {"pickapic": {"pair": 9}, "hpdv2": {"ranking": 15}, "imagereward": {"ratings": 12, "ranking": 3},
        "richhf": {"rich": 12}, "simulacra": {"rating": 12}, "visionprefer": {"ratings": 12}, "ava": {"rating": 144},
        "mhp": {"pair": 24}, "binary": {"binary": 12}}


@pytest.fixture(scope="module")
def twins():
    return {name: make_twin(name, 3, 4, seed=1) for name in TWINS}


@pytest.mark.parametrize("name", TWINS)
def test_a_twin_has_its_kinds_of_records(twins, name, tmp_path):
    records = twins[name]
    assert Counter(record.kind for record in records) == KIND[name] and not records.skipped
    assert len({record.record_id for record in records}) == len(records)
    assert all(record.source == f"shapes-{name}-train" and all(record.models) for record in records)
    file = tmp_path / "twin.parquet"
    main(["--twin", name, "--prompts", "1", "--out", str(file)])
    assert len(read_records(file)) > 0


def test_scales_and_annotators_are_those_of_the_twin(twins):
    assert {(r.low, r.high) for r in twins["simulacra"]} == {(1, 10)}
    assert all(r.rating == int(r.rating) for r in twins["simulacra"])
    assert {(r.low, r.high) for r in twins["imagereward"] if r.kind == "ratings"} == {(1, 7)}
    assert {r.annotator for r in twins["visionprefer"]} == {"ai"}
    assert all(len({r.annotator for r in twins["ava"] if r.images == one}) == 12
               for one in {r.images for r in twins["ava"]})
    assert {r.extra["dimension"] for r in twins["mhp"]} == {"overall", "aesthetics", "alignment", "detail"}
    assert all(len({r.annotator for r in twins["hpdv2"] if r.prompt_id == p}) == 5
               for p in {r.prompt_id for r in twins["hpdv2"]})
    rich = twins["richhf"][0]
    assert set(rich.heatmaps) == {"artifact", "misalignment"} and len(rich.ratings) == 4


@pytest.mark.truth
def test_votes_on_looks_ignore_the_prompt():
    sure = Pool((Annotator("sure", temperature=0.0),))
    prompts = prompts_of("train", 3)
    pictures = Renderings({"right": Hand(0, 0, 0)})(prompts, 1, 0)
    votes = [AnswerSheet(sure[0], Shown(look(pictures.images, texts))).rating(0, 0, 1, 0.01, dimension="aesthetics")
             for texts in ([p.text for p in prompts], ["four blue rings"] * 3)]
    overall = [AnswerSheet(sure[0], Shown(look(pictures.images, texts))).rating(0, 0, 1, 0.01)
               for texts in ([p.text for p in prompts], ["four blue rings"] * 3)]
    assert votes[0].rating == votes[1].rating and overall[0].rating > overall[1].rating + 0.2


@pytest.mark.truth
def test_in_the_twin_of_pick_a_pic_the_winner_stays(twins):
    records = twins["pickapic"]
    assert {record.preference for record in records} <= {0.0, 0.5, 1.0}
    for before, after in pairwise(records):
        if before.prompt_id == after.prompt_id:
            assert after.images[0] == before.images[before.preference == 0]
            assert after.images[1] not in before.images
    assert any(record.preference == 0 for i, record in enumerate(records) if i % 3 < 2)  # some left pictures lose


def test_a_twin_is_a_function_of_its_seed(twins):
    assert list(make_twin("pickapic", 3, 4, seed=1)) == list(twins["pickapic"])
    assert list(make_twin("pickapic", 3, 4, seed=2)) != list(twins["pickapic"])
    longer = make_twin("pickapic", 3, 5, seed=1)
    assert longer[0].images == twins["pickapic"][0].images  # a picture does not depend on how many there are


@pytest.mark.truth
def test_splits_are_kept_apart():
    texts = {split: prompts_of(split, 60, seed=3) for split in ("train", "held-out", "generalisation")}
    assert not any(is_held_out(parse(p.text)) or p.spec.unseen_pair for p in texts["train"])
    assert all(is_held_out(parse(p.text)) for p in texts["held-out"])
    assert all(p.spec.unseen_pair for p in texts["generalisation"])
    keys = {split: {p.spec.key for p in prompts} for split, prompts in texts.items()}
    assert not keys["train"] & keys["held-out"]
    assert len({p.category for p in texts["train"][:7]}) == 7
    assert all(is_held_out(parse(r.prompt)) for r in make_twin("binary", 2, 1, split="held-out"))


@pytest.mark.truth
def test_a_pool_of_sure_people_without_taste_prefers_by_gold():
    sure = Pool((Annotator("sure", temperature=0.0),))
    data = to_pairs(make_twin("pickapic", 12, 3, seed=5, pool=sure))
    gold = gold_utility(data.images, "a circle")  # only to show that pictures decode; the right prompts follow
    assert torch.isfinite(gold).all()
    first = gold_utility(data.images[data.first], data.prompts)
    second = gold_utility(data.images[data.second], data.prompts)
    clear = (first - second).abs() > 0.02  # PNG rounds to 8 bits
    assert clear.sum() > 10
    assert ((first > second) == (data.preference == 1))[clear].all()


def test_answers_differ_between_people_and_are_counted():
    prompts = prompts_of("train", 6)
    shown = Shown(look(PLAIN(prompts, 2, 0).images, [p.text for p in prompts for _ in range(2)]))
    a, again, b = (AnswerSheet(make_pool(2)[i], shown) for i in (0, 0, 1))
    answers = [[sheet.pair(2 * i, 2 * i + 1).preference for i in [*range(6)] * 6] for sheet in (a, again, b)]
    assert answers[0] == answers[1] != answers[2] and a.answered == 36
    assert len({tuple(answers[0][i::6]) for i in range(6)}) > 1 and answers[0][:6] * 6 != answers[0]
    assert a.rich(0) is not None and a.answered == 37  # scores and marks are one answer


def flat(prompts, k, seed):
    return Pictures(torch.ones(len(prompts) * k, 3, 64, 64), ("flat",) * (len(prompts) * k))


def test_equal_pictures_are_counted_and_left_out():
    records = make_twin("pickapic", 2, 3, pictures=flat)
    assert not records
    assert records.skipped == {"equal pictures": 4, "prompt with too few different pictures": 2}


def test_sources_keep_their_order_and_their_quality():
    prompts = prompts_of("train", 20)
    both = Mixture((flat, Renderings({"right": Hand(0, 0, 0)})))(prompts, 3, 0)
    assert both.models == ("flat", "right", "flat") * 20
    assert (both.images[::3] == 1).all() and not (both.images[1] == 1).all()
    texts = [p.text for p in prompts]
    good = look(Renderings({"right": Hand(0, 0, 0)})(prompts, 1, 0).images, texts)
    poor = look(Renderings({"wrong": Hand(1, 0.5, 0.5)})(prompts, 1, 0).images, texts)
    assert all(v.passed for v in good.verdicts) and sum(v.passed for v in poor.verdicts) < 6
    assert good.quality.overall.mean() > poor.quality.overall.mean() + 0.05


def test_model_samples_do_not_depend_on_the_batch():
    prompts = prompts_of("train", 2)
    settings = {"a": (1.0, 2), "b": (3.0, 2)}
    one = ModelSamples("tiny-sd", settings, batch=1)(prompts, 2, 0)
    all_at_once = ModelSamples("tiny-sd", settings, batch=8)(prompts, 2, 0)
    assert one.models == all_at_once.models and one.models[0].startswith("tiny-sd, ")
    assert one.images.shape[:2] == (4, 3)
    torch.testing.assert_close(one.images, all_at_once.images, atol=1e-4, rtol=0)


def test_small_asks_for_three_hundred_pairs_and_sixty_of_each_other_kind():
    records = {"pickapic": lambda n, k: n * (k - 1), "hpdv2": lambda n, k: 5 * n,
               "imagereward": lambda n, k: n * (k + 1), "mhp": lambda n, k: 4 * n * (k // 2)}
    counts = {name: records.get(name, lambda n, k: n * k)(n, k) for name, (n, k) in SMALL.items()}
    assert counts.keys() == {*TWINS} - {"ava"}
    assert counts.pop("pickapic") == 300 and set(counts.values()) == {60}


def test_bad_questions_are_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown twin 'laion'; known: pickapic"):
        make_twin("laion", 2)
    with pytest.raises(ValueError, match="images_per_prompt=1; pickapic needs at least 2"):
        make_twin("pickapic", 2, 1)
    with pytest.raises(ValueError, match="n_prompts=0"):
        make_twin("binary", 0)
    with pytest.raises(ValueError, match="unknown split 'test'; known: train"):
        make_twin("binary", 1, split="test")
    with pytest.raises(ValueError, match="unknown source of pictures 'dreams'; known: rendered"):
        make_twin("binary", 1, pictures="dreams")
    with pytest.raises(ValueError, match="1 pictures and 1 models for 2 prompts"):
        make_twin("binary", 2, 1, pictures=lambda prompts, k, seed: Pictures(torch.ones(1, 3, 64, 64), ("x",)))
    with pytest.raises(SystemExit):
        main(["--twin", "binary", "--out", str(tmp_path / "x.csv")])
    pictures = render([Scene((Thing("circle", c, 32, 32, 8.0),)) for c in ("red", "blue")])
    sheet = AnswerSheet(Annotator("a"), Shown(look(pictures, ["a circle", "a ring"])))
    with pytest.raises(ValueError, match="belong to one prompt"):
        sheet.pair(0, 1)
    with pytest.raises(ValueError, match="no picture 2"):
        sheet.binary(2)
    with pytest.raises(ValueError, match="self-comparison"):
        sheet.pair(0, 0)
    with pytest.raises(ValueError, match="unknown dimension 'charm'"):
        sheet.ratings(0, {"x": "charm"})
    assert decode_picture(encode_picture(pictures[0])).shape == (3, 64, 64)
