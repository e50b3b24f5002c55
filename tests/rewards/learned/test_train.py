"""Training: resumable to the bit, honest when it fails, and able to learn what was planted."""

import dataclasses
import json
import shutil

import pytest
import torch
from clip_for_tests import embeddings, examples, make_trunk, planted_pairs, utility

import surveylib.worlds.shapes as shapes
from surveylib import cli
from surveylib.diffusion.zoo import ModelUnavailable
from surveylib.rewards.learned import aesthetic, load_learned, mps, store
from surveylib.rewards.learned.evaluate import ceiling, evaluate_reward
from surveylib.rewards.learned.model import LearnedReward, RewardModel
from surveylib.rewards.learned.store import DESCRIPTION, TENSORS, save_learned
from surveylib.rewards.learned.train import (
    PRESETS,
    RewardConfig,
    RewardTrainingDiverged,
    batch_rows,
    rate_at,
    train_reward,
)
from surveylib.rewards.learned.trunk import load_trunk, shapes_clip_folder
from surveylib.rewards.registry import load_reward

SHORT = RewardConfig(steps=6, batch=16, micro=8, lr=1e-3, head_lr=1e-3, warmup=2, every=2)


def make_model(head="imagereward", unlock=(0, 0), **options):
    torch.manual_seed(3)
    options = options or ({"hidden": (32, 16)} if head in ("imagereward", "aesthetic") else {})
    return RewardModel(make_trunk(unlock), head, **options)


def few(m=40):
    pairs, _ = planted_pairs(m, among=30)
    return dataclasses.replace(pairs, weight=torch.linspace(0.5, 1.5, m))


def finish(folder, pairs, config=SHORT, stop=None, head="imagereward", unlock=(1, 0)):
    model = make_model(head, unlock)
    for row in train_reward(model, pairs, config, folder):
        if row["step"] == stop:
            return None
    return {name: value.clone() for name, value in model.trained().items()}


@pytest.mark.truth
def test_a_stopped_run_resumed_ends_in_the_same_bits(tmp_path):
    pairs = few()
    whole = finish(tmp_path / "whole", pairs)
    for stop in (1, 2, 5):
        assert finish(tmp_path / f"cut{stop}", pairs, stop=stop) is None
        again = finish(tmp_path / f"cut{stop}", pairs)
        assert all(torch.equal(whole[name], again[name]) for name in whole)
    start = make_model(unlock=(1, 0)).trained()
    assert any(not torch.equal(whole[name], start[name]) for name in whole)


@pytest.mark.truth
def test_micro_batches_give_the_gradient_of_the_whole_batch(tmp_path):
    pairs = few()
    config = dataclasses.replace(SHORT, steps=1, every=1, warmup=0)
    norms = [next(iter(train_reward(make_model("pickscore", adapt=True), pairs,
                                    dataclasses.replace(config, micro=micro), tmp_path / str(micro))))
             for micro in (3, 16)]
    assert norms[0]["loss"] == pytest.approx(norms[1]["loss"], rel=1e-5)
    assert norms[0]["norm"] == pytest.approx(norms[1]["norm"], rel=1e-4)


def test_only_what_is_unlocked_moves(tmp_path):
    model = make_model(unlock=(1, 0))
    before = {name: value.clone() for name, value in model.named_parameters()}
    for _ in train_reward(model, few(), SHORT, tmp_path):
        pass
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("trunk.clip.vision_model.encoder.layers.4") for name in moved)
    assert not any("text_model" in name or "layers.3" in name or "embeddings" in name for name in moved)
    assert any(name.startswith("head") for name in moved)


def test_without_cache_the_run_is_the_same(tmp_path):
    pairs = few()
    cached = finish(tmp_path / "a", pairs)
    live = finish(tmp_path / "b", pairs, dataclasses.replace(SHORT, cache_bytes=0))
    assert all(torch.allclose(cached[name], live[name], atol=1e-4) for name in cached)


@pytest.mark.truth
def test_a_planted_utility_is_recovered(tmp_path):
    train, _ = planted_pairs(6000, among=300)
    test, p = planted_pairs(2000, seed=9, among=300)
    model = make_model("aesthetic", hidden=(16,))
    model.head.loss = lambda a, b, y: torch.nn.functional.binary_cross_entropy_with_logits((a - b)[:, 0], y,
                                                                                           reduction="none")
    config = RewardConfig(steps=150, batch=128, lr=1e-3, head_lr=0.02, every=150, decay=0.0)
    for _ in train_reward(model, train, config, tmp_path):
        pass
    reward = LearnedReward(model)
    report = evaluate_reward(reward, test, validation=planted_pairs(1000, seed=3, among=300)[0], probability=p)
    with torch.no_grad():
        scores = reward(examples()[0][:300])
    correlation = torch.corrcoef(torch.stack([scores, utility()[:300]]))[0, 1]
    assert correlation > 0.95
    assert report.ceiling == pytest.approx(ceiling(p.numpy())) and 0.6 < report.ceiling < 0.95
    assert report.micro.value > report.ceiling - 0.04 and report.micro.value > report.single_annotator
    assert report.calibration.ece < 0.03


@pytest.mark.parametrize("head", ["pickscore", "imagereward", "hpsv3"])
def test_every_pair_head_learns(head, tmp_path):
    options = {"pickscore": {"adapt": True}, "imagereward": {"hidden": (16,)}, "hpsv3": {"hidden": (32,)}}[head]
    train, _ = planted_pairs(1500, sharpness=6.0, among=150)
    test, _ = planted_pairs(600, sharpness=6.0, seed=4, among=150)
    model = make_model(head, **options)
    config = RewardConfig(steps=40, batch=64, lr=1e-3, head_lr=5e-3, every=40, decay=0.0)
    for _ in train_reward(model, train, config, tmp_path):
        pass
    reward = load_learned(tmp_path / "model", make_trunk())
    assert evaluate_reward(reward, test).micro.value > 0.62  # chance is 0.5


def test_ratings_are_regressed(tmp_path):
    u = utility()
    rating = ((u - u.min()) / (u.max() - u.min()))[:200]
    pictures, captions, _ = examples(200)
    data = aesthetic.RatingData(pictures, torch.arange(200), list(captions), torch.arange(200), rating, torch.ones(200))
    model = make_model("aesthetic", hidden=(16,))
    config = RewardConfig(steps=120, batch=64, lr=1e-3, head_lr=0.01, every=120, decay=0.0, standardise=True)
    for _ in train_reward(model, data, config, tmp_path):
        pass
    reward = load_learned(tmp_path / "model", make_trunk())
    scores = reward(pictures)
    assert torch.corrcoef(torch.stack([scores, rating]))[0, 1] > 0.9
    assert abs(scores.mean()) < 0.02 and scores.std().item() == pytest.approx(1, abs=0.02)
    with pytest.raises(ValueError, match="ratings"):
        next(train_reward(make_model("aesthetic"), few(), SHORT, tmp_path / "pairs"))
    with pytest.raises(ValueError, match="pairs"):
        next(train_reward(make_model("imagereward"), data, SHORT, tmp_path / "ratings"))


def test_dimensions_are_trained_together(tmp_path):
    pairs = few(30)
    both = mps.dimension_pairs({"colour": pairs, "size": dataclasses.replace(pairs, preference=1 - pairs.preference)},
                               ("colour", "size"))
    assert both.preference.shape == (60, 2) and int(both.preference.isnan().sum()) == 60
    assert both.first[30:].min() >= len(pairs.images)
    model = make_model("mps", dimensions=("colour", "size"))
    rows = list(train_reward(model, both, SHORT, tmp_path))
    assert rows[-1]["loss"] > 0
    with pytest.raises(ValueError, match="unknown dimensions"):
        mps.dimension_pairs({"taste": pairs}, ("colour",))
    with pytest.raises(ValueError, match="dimension_pairs"):
        next(train_reward(make_model("mps", dimensions=("colour", "size")), pairs, SHORT, tmp_path / "flat"))


def test_divergence_is_named_and_the_last_checkpoint_stays(tmp_path):
    pairs, model = few(), make_model()
    run = train_reward(model, pairs, SHORT, tmp_path)
    for _ in range(3):
        next(run)
    good = (tmp_path / "checkpoint" / "tensors.safetensors").read_bytes()
    with torch.no_grad():
        model.head.layers[0].weight[0, 0] = float("nan")
    with pytest.raises(RewardTrainingDiverged, match=r"step 3.*last good checkpoint is .*checkpoint.*Lower lr"):
        next(run)
    assert (tmp_path / "checkpoint" / "tensors.safetensors").read_bytes() == good
    assert not (tmp_path / "model").exists()
    with pytest.raises(RewardTrainingDiverged, match="no checkpoint yet"):
        next(train_reward(make_model(), pairs, dataclasses.replace(SHORT, loss_limit=1e-3), tmp_path / "limit"))
    with pytest.raises(ValueError, match="NaN"):
        save_learned(model, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_other_runs_are_refused(tmp_path):
    pairs = few()
    finish(tmp_path, pairs, stop=3)
    with pytest.raises(ValueError, match="another config"):
        finish(tmp_path, pairs, dataclasses.replace(SHORT, head_lr=0.1))
    with pytest.raises(ValueError, match="another data"):
        finish(tmp_path, dataclasses.replace(pairs, preference=1 - pairs.preference))
    with pytest.raises(ValueError, match="another model"):
        finish(tmp_path, pairs, head="hpsv3")


def test_validation_keeps_the_best_weights(tmp_path):
    train, _ = planted_pairs(300, sharpness=6.0, among=60)
    held, _ = planted_pairs(300, sharpness=6.0, seed=2, among=60)
    model = make_model()
    config = dataclasses.replace(SHORT, steps=8, head_lr=0.01)
    kept = []
    for row in train_reward(model, train, config, tmp_path, validation=held):
        if row["step"] % 2 == 0:
            kept.append(evaluate_reward(LearnedReward(model), held).micro.value)
    assert evaluate_reward(LearnedReward(model), held).micro.value == pytest.approx(max(kept))


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0.0}, {"schedule": "linear"}, {"mixed_precision": "fp8"}])
def test_configurations_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        dataclasses.replace(SHORT, **wrong)


def test_mixed_precision_runs(tmp_path):
    config = dataclasses.replace(SHORT, steps=2, mixed_precision="bf16")
    rows = list(train_reward(make_model(), few(), config, tmp_path))
    assert len(rows) == 2 and all(0 < row["loss"] < 5 for row in rows)


def test_rates_and_rows():
    config = PRESETS["pickscore-full"]
    assert rate_at(config, 0) == 1 / 500 and rate_at(config, 500) == rate_at(config, 3999) == 1
    assert rate_at(PRESETS["toy"], PRESETS["toy"].steps - 1) < 1e-3
    seen = torch.cat([batch_rows(12, 4, 0, step) for step in range(3)])
    assert sorted(seen.tolist()) == list(range(12)) and len(batch_rows(3, 64, 0, 5)) == 3


def test_saved_rewards_score_the_same_and_know_their_trunk(tmp_path):
    model = make_model("pickscore", unlock=(1, 1))
    with torch.no_grad():
        model.trunk.clip.visual_projection.weight += 0.1
    save_learned(model, tmp_path / "r", "mine", {"accuracy": 0.5})
    pictures, captions, _ = examples()
    reward = load_learned(tmp_path / "r", make_trunk())
    assert reward.name == "mine" and not any(p.requires_grad for p in reward.model.parameters())
    assert torch.equal(reward(pictures[:4], captions[:4]), LearnedReward(model)(pictures[:4], captions[:4]).detach())
    assert (tmp_path / "r" / TENSORS).stat().st_size < 2_000_000
    with pytest.raises(ValueError, match="is not the one"):
        load_learned(tmp_path / "r", make_trunk(seed=1))


def test_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no learned reward in"):
        load_learned(tmp_path / "none")
    save_learned(make_model(), tmp_path / "r")
    description = json.loads((tmp_path / "r" / DESCRIPTION).read_text())
    (tmp_path / "r" / DESCRIPTION).write_text(json.dumps({**description, "sha256": "0"}))
    with pytest.raises(ValueError, match="save it again"):
        load_learned(tmp_path / "r", make_trunk())
    (tmp_path / "r" / DESCRIPTION).write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(ValueError, match="format 99"):
        load_learned(tmp_path / "r", make_trunk())
    (tmp_path / "r" / DESCRIPTION).write_text(json.dumps(description))
    (tmp_path / "r" / TENSORS).write_bytes(b"short")
    with pytest.raises(ValueError, match=rf"damaged: .*{TENSORS}(.|\n)*save it again"):
        load_learned(tmp_path / "r", make_trunk())


SHIPPED = store.CHECKPOINTS / "shapes-pickscore"


def broken(path, damage):
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize("file", [DESCRIPTION, TENSORS])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_shipped_reward_names_the_file_and_the_command(file, damage, tmp_path, monkeypatch):
    folder = shutil.copytree(SHIPPED, tmp_path / "shapes-pickscore")
    monkeypatch.setattr(store, "CHECKPOINTS", tmp_path)
    broken(folder / file, damage)
    with pytest.raises(FileNotFoundError if damage == "missing" else ValueError) as error:
        load_reward("shapes-pickscore")
    assert f"git checkout -- {folder / file}" in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_shapes_clip_names_the_file_and_the_command(damage, tmp_path, monkeypatch, capsys):
    """Also through a reward that stands on it, and on the command line."""
    folder = shutil.copytree(shapes_clip_folder(), tmp_path / "checkpoints" / "shapes-clip")
    monkeypatch.setattr(shapes, "__file__", str(tmp_path / "__init__.py"))
    broken(folder / "model.safetensors", damage)
    wanted = f"git checkout -- {folder / 'model.safetensors'}"
    for load in (load_trunk, shapes_clip_folder, lambda: load_learned("shapes-pickscore")):
        with pytest.raises(FileNotFoundError if damage == "missing" else ModelUnavailable) as error:
            load()
        assert wanted in str(error.value) and ("pretrain.clip" in str(error.value)) == (damage == "missing")
    monkeypatch.setattr("sys.argv", ["surveylib", "align", "ddpo", "--scale", "rehearsal", "--reward",
                                     "shapes-pickscore", "--out", str(tmp_path / "run")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert "error: " in said and wanted in said and "Traceback" not in said


def test_a_missing_shapes_clip_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(FileNotFoundError, match=r"pretrain\.clip"):
        load_trunk("shapes-clip")


def test_features_are_not_all_alike():
    assert embeddings().std(0).mean() > 1e-3  # the planted utility has something to stand on
