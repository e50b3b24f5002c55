"""Measuring: rows that can be repeated, killed runs that go on, choice by proxy, gold read once, reports."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from surveylib.diffusion.zoo import load_model
from surveylib.evaluation import measure as measuring
from surveylib.evaluation import rows as row_files
from surveylib.evaluation import scoring
from surveylib.evaluation.drawing import draw_plain, expanded, read_sheet, write_sheet
from surveylib.evaluation.measure import Bench, measure
from surveylib.evaluation.protocol import BUDGETS, Budget, Protocol, choices, prompts_of
from surveylib.evaluation.report import direction, report
from surveylib.evaluation.rows import Plan
from surveylib.evaluation.win_rate import TIE
from surveylib.rewards.registry import load_reward
from surveylib.techniques import registry
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import technique_class

SMALL = Protocol(test=1, validation=1, pictures=2, steps=3, kl_prompts=2, kl_steps=2)
BUDGET = Budget(40, 6)  # Fake spends 4 + 2 * 4 = 12 an epoch: 4 epochs


NAMES = {"fake": "fakes:Fake", "still": "fakes:Still", "idle": "fakes:Idle", "fake_sampler": "fakes:FakeSampler"}


@pytest.fixture(autouse=True, scope="module")
def known():
    """The fakes by name, in this file alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_CLASSES", {**registry._CLASSES, **NAMES})
        yield


def run(names, place, say=lambda line: None, seeds=(0,), settings=1, protocol=SMALL, budget=BUDGET):
    return list(measure(names, seeds, budget, scale="toy", protocol=protocol, settings=settings,
                        folder=place / "rows", work=place / "work", say=say))


@pytest.fixture(scope="module")
def measured(tmp_path_factory, known):
    """Base, fake (two settings) and the sampler (three settings), measured once."""
    place = tmp_path_factory.mktemp("measured")
    run(["fake"], place, settings=2)
    run(["still"], place, settings=1)
    run(["fake_sampler"], place, settings=3)
    return place


def row(place, name):
    return json.loads((place / "rows" / f"{name}.json").read_text())


def test_a_row_holds_what_a_repetition_needs(measured):
    found = row(measured, "still-seed0-preset")
    assert found["config"] == {"push": 0.0} and found["training"]["lr"] == pytest.approx(1e-3)
    assert found["model"] == "shapes-sd" and found["reward"] == "shapes-pickscore"
    assert all(len(found["hashes"][k]) == 16 for k in (
        "rule", "model", "reward", "gold", "sampler", "held_out", "validation", "test"))
    assert found["training_run"]["ledger"]["equivalents"] == 48 and found["training_run"]["epochs"] == 4
    assert [epoch["equivalents"] for epoch in found["training_run"]["history"]] == [12, 24, 36, 48]
    assert found["hardware"]["cores"] >= 1 and found["versions"]["torch"] == torch.__version__
    assert found["test"]["ledger"]["calls_per_picture"] == 6  # three guided steps
    assert found["test"]["means"]["gold"]["n"] == 14 and found["test"]["means"]["gold"]["prompts"] == 7
    assert list(found["test"]["by_category"]["pass"])[-1] == "overall"
    assert "129 pictures" in found["test"]["left_out"]["fid_to_base"]


def test_six_fixed_prompts_are_kept_as_one_small_picture(measured):
    sheets = [row(measured, name)["test"]["sheet"] for name in ("base-seed0-shapes-sd", "still-seed0-preset")]
    assert sheets[0]["prompts"] == sheets[1]["prompts"] and len(set(sheets[0]["prompts"])) == 6
    for sheet in sheets:
        with Image.open(measured / "rows" / sheet["file"]) as image:
            assert image.size[1] == 64 and image.size[0] >= 6 * 64
        assert (measured / "rows" / sheet["file"]).stat().st_size < 40_000


def test_a_sheet_gives_back_its_pictures(tmp_path):
    pictures = torch.tensor([0.0, 1.0, 0.2]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    write_sheet(tmp_path / "s.png", pictures)
    assert [(p.shape, int(p.min()), int(p.max())) for p in read_sheet(tmp_path / "s.png", 3)] == [
        ((8, 8, 3), v, v) for v in (0, 255, 51)]


def test_a_technique_that_learns_nothing_measures_as_the_base_model(measured):
    """Same prompts, same noise: the pictures are the base model's, every comparison says so."""
    base, still = row(measured, "base-seed0-shapes-sd")["test"], row(measured, "still-seed0-preset")["test"]
    assert still["scores"] == base["scores"]
    assert all(rate["value"] == 0.5 for rate in still["win_rate"].values())
    assert still["distance_to_base"]["value"] == pytest.approx(0, abs=1e-9) and still["path_kl"]["value"] == 0
    assert still["prdc_to_base"]["precision"] == still["prdc_to_base"]["recall"] == 1


def test_a_technique_that_learns_something_does_not(measured):
    tested = next(r for name in ("preset", "fast", "slow") if "test" in (r := row(measured, f"fake-seed0-{name}")))
    assert tested["test"]["path_kl"]["value"] > 0 and tested["test"]["distance_to_base"]["value"] > 1e-5


def test_the_proxy_chooses_and_only_the_chosen_setting_is_tested(measured):
    found = {name: row(measured, f"fake_sampler-seed0-{name}") for name in ("preset", "strong", "weak")}
    proxies = {name: r["validation"]["proxy"]["value"] for name, r in found.items()}
    assert proxies["weak"] == proxies["preset"] > proxies["strong"]  # negatives please nobody
    assert [name for name, r in found.items() if "test" in r] == ["preset"]
    # this strength changes nothing: the plain sampler from the base model's noise
    assert found["preset"]["test"]["scores"] == row(measured, "base-seed0-shapes-sd")["test"]["scores"]
    assert found["preset"]["training"] is None and "training_run" not in found["preset"]
    assert "path_kl" not in found["preset"]["test"]


def test_gold_is_read_once_and_not_in_validation(tmp_path, monkeypatch, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    (tmp_path / "rows" / "fake-seed0-fast.json").unlink()
    (tmp_path / "rows" / "fake-seed0-preset.json").unlink()
    looks, real = [], scoring.metrics.faithfulness
    monkeypatch.setattr(scoring.metrics, "faithfulness", lambda *a: looks.append(len(a[0])) or real(*a))
    steps = measure(["fake"], (0,), BUDGET, scale="toy", protocol=SMALL, settings=2, folder=tmp_path / "rows",
                    work=tmp_path / "work")
    next(steps), next(steps), next(steps)  # base, two validated settings
    assert looks == []
    list(steps)
    assert looks == [14, 14]  # the base model's pictures anew, for comparison, and the chosen setting's


def test_measuring_again_takes_the_rows_that_hold(measured, monkeypatch):
    monkeypatch.setattr(measuring, "load_model", lambda *a: pytest.fail("a model was loaded"))
    said = []
    again = run(["fake_sampler"], measured, said.append, settings=3)
    assert said == [] and [r["setting"] for r in again] == ["shapes-sd", "preset", "strong", "weak", "preset"]


def test_a_killed_measurement_goes_on_where_it_was(tmp_path, measured):
    class Killed(BaseException):
        pass

    def kill(line):
        if "epoch 2," in line:
            raise Killed

    shutil.copytree(measured / "rows", tmp_path / "rows", ignore=shutil.ignore_patterns("fake-*"))
    with pytest.raises(Killed):
        run(["fake"], tmp_path, kill)
    assert not (tmp_path / "rows" / "fake-seed0-preset.json").exists()
    said = []
    run(["fake"], tmp_path, said.append)
    epochs = [line for line in said if "epoch" in line]
    assert len(epochs) == 2  # nothing twice
    new, old = row(tmp_path, "fake-seed0-preset"), row(measured, "fake-seed0-preset")
    assert new["validation"]["proxy"] == old["validation"]["proxy"]  # bit-equal to the run without a stop
    strip = [[{k: v for k, v in epoch.items() if k != "seconds"} for epoch in r["training_run"]["history"]]
             for r in (new, old)]
    assert strip[0] == strip[1]


def test_a_changed_preset_is_measured_anew_beside_the_old_run(tmp_path, measured, monkeypatch):
    """The old checkpoints are of other settings: they are neither loaded nor in the way."""
    shutil.copytree(measured, tmp_path / "copy")
    kind = technique_class("still")
    changed = kind.PRESETS["toy"].override({"push": 1.0}, lr=2e-3)
    monkeypatch.setattr(kind, "PRESETS", {"toy": changed})
    said = []
    found = run(["still"], tmp_path / "copy", said.append)[-1]
    assert found["config"] == {"push": 1.0} and found["training"]["lr"] == pytest.approx(2e-3)
    assert sum("epoch" in line for line in said) == 4
    assert found["training_run"]["ledger"]["equivalents"] == 48 and found["test"]["path_kl"]["value"] > 0


def test_a_run_that_was_killed_between_validation_and_test_is_not_trained_again(tmp_path, measured):
    shutil.copytree(measured, tmp_path / "copy")
    path = tmp_path / "copy" / "rows" / "still-seed0-preset.json"
    half = json.loads(path.read_text())
    test = half.pop("test")
    path.write_text(json.dumps(half))
    said = []
    run(["still"], tmp_path / "copy", said.append)
    assert said == ["still-seed0-preset: testing"]
    assert row(tmp_path / "copy", "still-seed0-preset")["test"]["scores"] == test["scores"]


def test_every_seed_has_its_row_and_its_own_base(tmp_path, measured):
    shutil.copytree(measured, tmp_path / "copy")
    rows = run(["still"], tmp_path / "copy", seeds=(0, 1))
    assert [(r["technique"], r["seed"]) for r in rows if "test" in r] == [
        ("base", 0), ("base", 1), ("still", 0), ("still", 0), ("still", 1)]
    assert rows[-1]["training_run"] == row(measured, "still-seed0-preset")["training_run"] | {
        key: rows[-1]["training_run"][key] for key in ("history", "ledger")}
    assert "validation" not in rows[-1]  # the first seed has chosen
    one, two = row(tmp_path / "copy", "base-seed0-shapes-sd"), row(tmp_path / "copy", "base-seed1-shapes-sd")
    assert one["test"]["scores"] != two["test"]["scores"]
    assert row(tmp_path / "copy", "still-seed1-preset")["test"]["scores"] == two["test"]["scores"]
    line = next(x for x in report(tmp_path / "copy" / "rows").lines if x["technique"] == "still")
    assert line["seeds"] == 2 and line["gold"].n == 28 and line["gold"].prompts == 7
    assert line["gain"]["gold"].value == 0 and line["gain"]["proxy"].n == 28  # it learns nothing: the base's pictures
    again = run(["still"], tmp_path / "copy", seeds=(1,))[-1]  # this seed alone: now it chooses, its test still holds
    assert again["test"] == rows[-1]["test"] and "proxy" in again["validation"]


# -- rows out of date --------------------------------------------------------------------------------------------------
def change(place, name, **values):
    path = place / "rows" / f"{name}.json"
    found = json.loads(path.read_text())
    for key, value in values.items():
        (found["hashes"] if key in found["hashes"] else found)[key] = value
    path.write_text(json.dumps(found))


def test_rows_out_of_date_are_listed_marked_and_measured_again(tmp_path, measured):
    shutil.copytree(measured, tmp_path / "copy")
    place = tmp_path / "copy"
    assert row_files.stale(place / "rows") == {}
    change(place, "still-seed0-preset", rule="0" * 16)
    change(place, "fake_sampler-seed0-preset", model="0" * 16, config={"strength": 9.0, "steps": 3})
    assert row_files.stale(place / "rows") == {"still-seed0-preset": ["rule"],
                                               "fake_sampler-seed0-preset": ["model", "config"]}
    found = report(place / "rows")
    notes = {line["technique"]: line["notes"] for line in found.lines}
    assert notes["still"] == notes["fake_sampler"] == "out of date" and notes["fake"] == ""
    said = []
    run(["still"], place, said.append)
    assert said[0] == "still-seed0-preset: measured again, rule changed"
    assert "still-seed0-preset" not in row_files.stale(place / "rows")


def test_other_code_of_sampling_and_other_judges_are_seen(tmp_path, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    change(tmp_path, "still-seed0-preset", sampler="0" * 16)
    change(tmp_path, "base-seed0-shapes-sd", held_out="0" * 16)
    assert row_files.stale(tmp_path / "rows") == {"still-seed0-preset": ["sampler"],
                                                  "base-seed0-shapes-sd": ["held_out"]}
    assert row_files.watchers("toy", Protocol()) == ["shapes-imagereward", "shapes-clip"]
    assert row_files.watchers("toy", Protocol(proxy="shapes-aesthetic")) == [
        "shapes-imagereward", "shapes-pickscore", "shapes-clip"]


def test_rows_of_a_technique_that_is_gone_are_out_of_date(tmp_path, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    shutil.copy(tmp_path / "rows" / "still-seed0-preset.json", tmp_path / "rows" / "gone-seed0-slow.json")
    change(tmp_path, "gone-seed0-slow", technique="gone")
    reasons = row_files.stale(tmp_path / "rows")["gone-seed0-slow"]
    assert "unknown technique 'gone'" in reasons[0]


def test_the_rule_hash_sees_code_and_not_words(tmp_path, monkeypatch):
    package = tmp_path / "little"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shared.py").write_text("X = 1\n")
    rule = package / "rule.py"
    monkeypatch.syspath_prepend(tmp_path)

    def hashed(text, shared="X = 1\n"):
        rule.write_text(text)
        (package / "shared.py").write_text(shared)
        row_files.rule_hash.cache_clear()
        return row_files.rule_hash("little.rule", "little")

    text = '"""Words."""\nfrom little import shared\nimport json\n\n\nclass A:\n    def f(self):\n        return 1\n'
    plain = hashed(text)
    assert hashed(text.replace("Words", "Other words") + "# said\nA.PRESETS = {}\n") == plain
    assert hashed(text.replace("return 1", "return 2")) != plain
    assert hashed(text, "X = 2\n") != plain  # what it imports
    assert hashed(text.replace("from little import shared", "from . import shared")) != hashed(
        text.replace("from little import shared", "from . import shared"), "X = 2\n")
    assert hashed(text.replace("from little import shared\n", ""), "X = 1\n") == hashed(
        text.replace("from little import shared\n", ""), "X = 2\n")
    row_files.rule_hash.cache_clear()


def test_the_rule_of_a_technique_takes_in_its_neighbours():
    ddpo = row_files.rule_hash("surveylib.techniques.policy_gradient.ddpo")
    assert ddpo != row_files.rule_hash("surveylib.techniques.policy_gradient.dpok") and len(ddpo) == 16


def test_shipped_records_and_folders_have_hashes(tmp_path):
    known = [row_files.artefact_hash(name) for name in ("shapes-sd", "shapes-pickscore", "shapes-small")]
    assert all(len(found) == 16 for found in known) and len(set(known)) == 3
    assert row_files.artefact_hash("sd1.5") is None
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    first = row_files.path_hash(tmp_path / "model")
    (tmp_path / "model" / "weights").write_text("2")
    row_files.path_hash.cache_clear()
    assert row_files.path_hash(tmp_path / "model") != first


def test_a_damaged_row_is_named(tmp_path):
    (tmp_path / "x-seed0-y.json").write_text("{")
    with pytest.raises(ValueError, match=r"x-seed0-y.json is no result row.*measure again"):
        report(tmp_path)
    (tmp_path / "x-seed0-y.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        report(tmp_path)
    (tmp_path / "x-seed0-y.json").unlink()
    with pytest.raises(FileNotFoundError, match="surveylib measure"):
        report(tmp_path)


# -- report ------------------------------------------------------------------------------------------------------------
def test_the_report_compares_techniques(measured):
    found = report(measured / "rows")
    assert found.lines[0]["technique"] == "base (shapes-sd)" and len(found.lines) == 4
    lines = {line["technique"]: line for line in found.lines}
    assert lines["still"]["win rate"].value == 0.5 and lines["still"]["training calls"] == 48
    assert {place.name for place in found.arena} == {"base", "fake", "still", "fake_sampler"}
    ratings = {place.name: place.rating for place in found.arena}
    assert ratings["base"] == pytest.approx(ratings["still"])  # the same pictures
    assert found.untested == []  # settings that lost are done
    assert len(found.figures["points"]) == 4 and len(found.figures["curves"]) == 8
    point = next(p for p in found.figures["points"] if p["technique"] == "still")
    assert point["gain"]["gold"] == 0 and point["path_kl"] == 0
    assert "| still |" in found.markdown() and json.loads(found.as_json())["lines"][0]["technique"].startswith("base")


def test_a_seed_that_drew_worse_pictures_does_not_rank_a_technique_lower(tmp_path, measured):
    """One technique gains a point in each of two seeds, of which the second is poor for all: it ranks first."""
    shutil.copytree(measured / "rows", tmp_path / "rows")
    plain = row(tmp_path, "base-seed0-shapes-sd")["test"]["scores"]["gold"]
    for path in [*(tmp_path / "rows").glob("base-*.json"), *(tmp_path / "rows").glob("fake-*.json")]:
        found = json.loads(path.read_text())
        gain = int(found["technique"] == "fake")
        for seed, level in ((0, 0), (1, -5)):
            if "test" in found:
                found["seed"], found["test"]["scores"]["gold"] = seed, [v + level + gain for v in plain]
                path.with_name(path.name.replace("seed0", f"seed{seed}")).write_text(json.dumps(found))
    found = report(tmp_path / "rows")
    base, best, *others = found.lines
    assert base["kind"] == "base" and best["technique"] == "fake" and best["seeds"] == 2
    assert best["gain over base"].value == pytest.approx(1) and others
    assert all(best["gold"].value < line["gold"].value for line in others)


def with_gold(place, measured, techniques, change, seeds=(0,)):
    """A copy of the rows, for each seed, in which `change(technique, seed)` is added to the base model's gold."""
    shutil.copytree(measured / "rows", place / "rows")
    plain = row(place, "base-seed0-shapes-sd")["test"]["scores"]["gold"]
    for path in list((place / "rows").glob("*.json")):
        found = json.loads(path.read_text())
        if "test" not in found or found["technique"] not in ("base", *techniques):
            continue
        for seed in seeds:
            moved = change(found["technique"], seed) if found["technique"] != "base" else [0.0] * len(plain)
            found["seed"], found["test"]["scores"]["gold"] = seed, [a + b for a, b in zip(plain, moved)]
            path.with_name(path.name.replace("seed0", f"seed{seed}")).write_text(json.dumps(found))
    return report(place / "rows")


def test_differences_of_gold_that_nobody_sees_win_nothing(tmp_path, measured):
    """All pictures of one technique score a hair above the base model's: with no tie it would win every time."""
    pictures = len(row(measured, "base-seed0-shapes-sd")["test"]["scores"]["gold"])
    found = with_gold(tmp_path, measured, ["fake", "still"],
                      lambda name, seed: [(0.5 if name == "still" else 5) * TIE] * pictures)
    lines = {line["technique"]: line for line in found.lines}
    assert lines["still"]["win rate"].value == 0.5 and lines["fake"]["win rate"].value == 1
    ratings = {place.name: place.rating for place in found.arena}
    assert ratings["base"] == pytest.approx(ratings["still"]) and ratings["fake"] > ratings["base"] + 100
    assert lines["still"]["gain"]["gold"].value == pytest.approx(0.5 * TIE)  # a mean needs no tie


def test_a_direction_needs_every_training_and_the_interval(tmp_path, measured):
    """Two trainings of one technique end on two sides of zero; the pooled interval alone would call it a rise."""
    pictures = len(row(measured, "base-seed0-shapes-sd")["test"]["scores"]["gold"])

    def moved(name, seed):
        level = {("fake", 0): 1.0, ("fake", 1): -0.01, ("still", 0): -0.3, ("still", 1): -0.5}.get((name, seed), 0.0)
        return [level] * pictures

    lines = {line["technique"]: line for line in with_gold(tmp_path, measured, ["fake", "still"], moved, (0, 1)).lines}
    assert lines["fake"]["gain"]["gold"].low > 0 and direction(lines["fake"], "gold") == 0
    assert lines["fake"]["gain by seed"]["gold"] == pytest.approx({"0": 1.0, "1": -0.01})
    assert lines["still"]["seeds"] == 2 and direction(lines["still"], "gold") == -1
    sampler = {**lines["fake"], "kind": "sampling"}  # trains nothing: its seeds are noise, which the interval knows
    assert direction(sampler, "gold") == 1
    wide = {**lines["still"], "gain": {"gold": replace(lines["still"]["gain"]["gold"], high=0.1)}}
    assert direction(wide, "gold") == 0


def test_decodes_and_reward_calls_stand_beside_the_calls(tmp_path, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    for name, changes in (("fake_sampler", {"reward_calls": 14, "decodes": 28}), ("fake", {"decodes": None})):
        path = tmp_path / "rows" / f"{name}-seed0-preset.json"
        found = json.loads(path.read_text())
        ledger = found["test"]["ledger"] | changes
        found["test"]["ledger"] = {key: value for key, value in ledger.items() if value is not None}
        path.write_text(json.dumps(found))
    pictures = len(found["test"]["scores"]["proxy"])
    lines = {line["technique"]: line for line in report(tmp_path / "rows").lines}
    assert lines["still"]["decodes a picture"] == 1 and lines["still"]["reward calls a picture"] == 0
    sampler = lines["fake_sampler"]
    assert sampler["decodes a picture"] == 28 / pictures and sampler["reward calls a picture"] == 14 / pictures
    assert lines["fake"]["decodes a picture"] is None  # a ledger that did not count them


def test_without_gold_a_held_out_reward_ranks_not_what_was_optimised(tmp_path, measured):
    """Beyond the Shapes world: a technique that only fools its proxy comes last."""
    shutil.copytree(measured / "rows", tmp_path / "rows")
    held_out = "shapes-imagereward"
    for path in (tmp_path / "rows").glob("*.json"):
        found = json.loads(path.read_text())
        if "test" in found:
            for part in ("scores", "means", "by_category"):
                for name in ("gold", "pass"):
                    found["test"][part].pop(name, None)
            if found["technique"] == "fake_sampler":
                scores = found["test"]["scores"]
                scores["proxy"], scores[held_out] = ([v + up for v in scores[name]]
                                                     for name, up in (("proxy", 9), (held_out, -9)))
            path.write_text(json.dumps(found))
    found = report(tmp_path / "rows")
    fooled = found.lines[-1]
    assert fooled["technique"] == "fake_sampler" and fooled["win rate"].value == 0 and fooled["gain"]["proxy"].value > 8
    assert found.arena[-1].name == "fake_sampler"
    assert "shapes-imagereward -" in found.markdown()


def test_a_test_of_a_setting_that_was_beaten_later_does_not_count(tmp_path, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    for setting, proxy in (("preset", 101.0), ("strong", 102.0)):
        found = row(tmp_path, f"fake_sampler-seed0-{setting}")
        found["validation"]["proxy"]["value"] = proxy
        found["test"] = row(tmp_path, "fake_sampler-seed0-preset")["test"]
        (tmp_path / "rows" / f"fake_sampler-seed0-{setting}.json").write_text(json.dumps(found))
    (line,) = (line for line in report(tmp_path / "rows").lines if line["technique"] == "fake_sampler")
    assert line["setting"] == "strong" and line["seeds"] == 1


def test_break_even_is_training_over_extra_calls(measured, tmp_path):
    found = {(b["technique"], b["sampler"]): b["pictures"] for b in report(measured / "rows").break_even}
    assert found["still", "fake_sampler"] is None  # both cost 6 calls a picture
    shutil.copytree(measured / "rows", tmp_path / "rows")
    path = tmp_path / "rows" / "fake_sampler-seed0-preset.json"
    changed = json.loads(path.read_text())
    changed["test"]["ledger"]["calls_per_picture"] = 22
    path.write_text(json.dumps(changed))
    again = report(tmp_path / "rows")
    assert {b["technique"]: b["pictures"] for b in again.break_even} == {"fake": 3, "still": 3}  # 48 / (22 - 6)
    notes = {line["technique"]: line["notes"] for line in again.lines}
    assert notes["fake_sampler"] == "over the budget of 6 calls"


def test_rows_of_different_protocols_do_not_mix(tmp_path, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    change(tmp_path, "still-seed0-preset", protocol={**SMALL.__dict__, "pictures": 3})
    with pytest.raises(ValueError, match="different protocol"):
        report(tmp_path / "rows")


# -- bad input and real techniques -------------------------------------------------------------------------------------
def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"seeds=\(\)"):
        run(["fake"], tmp_path, seeds=())
    with pytest.raises(ValueError, match="settings=4"):
        run(["fake"], tmp_path, settings=4)
    with pytest.raises(TechniqueError, match="unknown technique 'nothing'"):
        run(["nothing"], tmp_path)
    with pytest.raises(ValueError, match="training=0"):
        Budget(0, 1)
    with pytest.raises(ValueError, match="pictures=0"):
        Protocol(pictures=0)
    with pytest.raises(ValueError, match="unknown part"):
        prompts_of("train", "toy", SMALL)


def test_the_protocol_names_the_proxy_and_the_scales_own_is_held_out(tmp_path):
    named = replace(SMALL, proxy="shapes-aesthetic")
    plans = {name: Plan(name, "preset", 0, "toy", BUDGET, named) for name in ("ddpo", "diffusion_dpo", "best_of_n")}
    assert [plan.identity()["reward"] for plan in plans.values()] == ["shapes-aesthetic", "shapes-small",
                                                                      "shapes-aesthetic"]
    assert plans["ddpo"].recipe.signal == "shapes-aesthetic"
    assert plans["diffusion_dpo"].recipe.signal is None  # recorded preferences stay what they are
    as_before = Plan("ddpo", "preset", 0, "toy", BUDGET, SMALL)
    assert as_before.recipe.signal is None and as_before.identity()["reward"] == "shapes-pickscore"
    assert as_before.identity()["hashes"]["reward"] != plans["ddpo"].identity()["hashes"]["reward"]
    judges = Bench("toy", BUDGET, named, tmp_path, tmp_path, print).judges
    assert judges.proxy.name == "shapes-aesthetic" and set(judges.held_out) == {"shapes-imagereward",
                                                                               "shapes-pickscore"}
    found = run(["still"], tmp_path, protocol=named)[-1]
    texts = [prompt.text for prompt in expanded(prompts_of("test", "toy", named), SMALL.pictures)]
    drawn, _ = draw_plain(load_model("shapes-sd"), texts, seed=0, steps=SMALL.steps)  # what a still model draws
    for score, reward in (("proxy", "shapes-aesthetic"), ("shapes-pickscore", "shapes-pickscore")):
        assert found["test"]["scores"][score] == pytest.approx(load_reward(reward)(drawn, texts).tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="unknown reward 'looks'"):
        run(["still"], tmp_path / "none", protocol=replace(SMALL, proxy="looks"))
    assert not (tmp_path / "none").exists()


def test_a_technique_that_spends_nothing_is_refused(tmp_path, measured):
    shutil.copytree(measured / "rows", tmp_path / "rows")
    with pytest.raises(TechniqueError, match="called the network not once"):
        run(["idle"], tmp_path)


@pytest.mark.parametrize("name", registry.technique_names())
def test_every_technique_has_three_settings_that_its_config_takes(name):
    if "toy" not in registry.technique_class(name).PRESETS:
        pytest.skip(f"{name} has no preset at toy size yet")
    found = choices(name, "toy")
    base = registry.preset(name, "toy")
    made = {label: base.override(choice.config, **choice.training) for label, choice in found.items()}
    assert len(made) == 3 and "preset" in made
    assert len({repr((p.config, p.training)) for p in made.values()}) == 3  # three different ones


def test_test_prompts_are_held_out_and_fixed():
    from surveylib.worlds.shapes.prompts import is_held_out

    test, validation = prompts_of("test", "toy", Protocol()), prompts_of("validation", "toy", Protocol())
    assert all(is_held_out(p.spec.spec) for p in test) and not any(is_held_out(p.spec.spec) for p in validation)
    assert test == prompts_of("test", "toy", Protocol()) and len(test) == 140
    assert BUDGETS["toy"].training == 50_000


def test_ddpo_is_measured(tmp_path, monkeypatch):
    short = registry.preset("ddpo", "toy").override({"steps": 4}, samples=8, samples_per_prompt=4, sample_batch=8)
    monkeypatch.setitem(registry.technique_class("ddpo").PRESETS, "toy", short)
    found = run(["ddpo"], tmp_path, budget=Budget(300, 320))[-1]
    # 8 x 4 x 2 calls to collect; to learn three times 8 x 3 x 2, for the last step has no noise: 208 an epoch
    assert found["training_run"]["epochs"] == 2 and found["training_run"]["ledger"]["equivalents"] == 416
    assert found["test"]["path_kl"]["value"] > 0 and 0 < found["test"]["win_rate"]["gold"]["value"] < 1
    assert found["training_run"]["history"][0]["reward"] != 0


def test_changes_by_category_are_those_of_the_same_seeds(tmp_path, measured):
    """The technique draws the base model's pictures; a further seed of the base model alone changes nothing in it."""
    shutil.copytree(measured / "rows", tmp_path / "rows")
    other = json.loads((tmp_path / "rows" / "base-seed0-shapes-sd.json").read_text()) | {"seed": 1}
    for share in other["test"]["by_category"]["pass"].values():
        share["value"] = 1 - share["value"] / 2
    (tmp_path / "rows" / "base-seed1-shapes-sd.json").write_text(json.dumps(other))
    lines = {line["technique"]: line for line in report(tmp_path / "rows").lines}
    changes = lines["still"]["change by category"]
    assert changes and set(changes.values()) == {0.0}
    assert lines["still"]["by category"] != lines["base (shapes-sd)"]["by category"]
    assert any(lines["fake"]["change by category"].values())
