"""What only Flow-GRPO has: windows, shared noise, the conventions of the official code."""

import math

import pytest
import torch
from policies import RIGHT, draw, gradient, point_policy

from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.policy_gradient.flow_grpo import FlowGRPO, FlowGRPOConfig

BASE = {"steps": 8, "guidance": 1.0, "reduction": "sum", "clip": 0.2, "beta": 0.5}


def items_of(model, **options):
    technique = FlowGRPO(FlowGRPOConfig(**(BASE | options)))
    return technique, technique.collect(model, draw(), RIGHT).all_items()


def test_official_kl_is_dt_times_the_true_one():
    model = point_policy("flow", 0.05)
    technique, items = items_of(model)
    official, same = items_of(model, kl="official")
    assert torch.equal(items["x"], same["x"])
    exact = technique.loss(model, items, RIGHT, {})[1]["kl"]
    found = official.loss(model, items, RIGHT, {})[1]["kl"]
    assert torch.allclose(found, exact * (items["t"] - items["s"]).float(), rtol=1e-5)
    v, v_ref = [], []
    with torch.no_grad():
        v = model.predict(items["x"], items["t"], items.condition, 1.0).velocity[:, 0].double()
        with model.reference():
            v_ref = model.predict(items["x"], items["t"], items.condition, 1.0).velocity[:, 0].double()
    sigma = items["t"]
    g2 = 0.49 * sigma / (1 - torch.where(sigma >= 1, items["s"], sigma))
    # the paper's closed form: dt/2 (g (1 - sigma) / (2 sigma) + 1 / g)^2 (v - v_ref)^2
    paper = (sigma - items["s"]) / 2 * (g2.sqrt() * (1 - sigma) / (2 * sigma) + 1 / g2.sqrt()) ** 2 * (v - v_ref) ** 2
    assert torch.allclose(exact.double(), paper, rtol=1e-3, atol=1e-7)


def test_official_log_probability_of_cps_is_a_rescaled_one():
    model = point_policy("flow", 0.05)
    true, items = items_of(model, dynamics="cps", beta=0.0)
    official, same = items_of(model, dynamics="cps", log_prob="official", beta=0.0)
    std = items["s"] * math.sin(0.35 * math.pi)
    z2 = -2 * (items["old"].double() + std.log() + 0.5 * math.log(2 * math.pi))
    assert torch.allclose(same["old"].double(), -z2 * std**2, atol=1e-5)
    losses, metrics = official.loss(model, same, RIGHT, {})
    assert metrics["approx_kl"].max() < 1e-10
    slope, true_slope = gradient(model, losses), gradient(model, true.loss(model, items, RIGHT, {})[0])
    assert not torch.allclose(slope, true_slope, rtol=0.1)


def test_a_window_trains_its_steps_only_and_moves():
    model, seen = point_policy("flow"), set()
    grid = model.schedule.grid(8)
    technique = FlowGRPO(FlowGRPOConfig(window=2, shared_noise=True, **BASE))
    for epoch in range(20):
        asked = draw()
        object.__setattr__(asked, "epoch", epoch)
        batch = technique.collect(model, asked, RIGHT)
        assert batch.n_steps == 2
        first = int((grid == batch.steps["t"][0, 0]).nonzero())
        assert batch.steps["t"][0, 1] == grid[first + 1]
        seen.add(first)
    assert seen == {0, 1, 2, 3}


def test_with_shared_noise_a_group_has_one_path_to_the_window():
    model = point_policy("flow")
    for shared in (True, False):
        technique = FlowGRPO(FlowGRPOConfig(window=1, shared_noise=shared, **BASE))
        batch = technique.collect(model, draw(), RIGHT)
        starts = batch.steps["x"][:, 0, 0].unflatten(0, (2, 6))
        assert bool((starts == starts[:, :1]).all()) == shared
        assert batch.steps["x_next"][:, 0, 0].unique().numel() == 12


def test_whole_gradient_takes_the_kl_to_come_off_the_advantage():
    model = point_policy("flow", 0.05)
    _, local = items_of(model, scale="none")
    technique, whole = items_of(model, scale="none", kl_gradient="path")
    kl = technique.loss(model, whole, RIGHT, {})[1]["kl"].unflatten(0, (12, 7))
    ahead = (kl.flip(1).cumsum(1).flip(1) - kl).unflatten(0, (2, 6))
    expected = local["advantage"].unflatten(0, (12, 7)) - 0.5 * (ahead - ahead.mean(1, keepdim=True)).flatten(0, 1)
    assert torch.allclose(whole["advantage"].unflatten(0, (12, 7)), expected, atol=1e-4)
    assert not torch.allclose(whole["advantage"], local["advantage"], atol=1e-3)


def test_settings_are_checked():
    with pytest.raises(TechniqueError, match="'euler'"):
        FlowGRPOConfig(dynamics="euler")
    with pytest.raises(TechniqueError, match=r"noise=1\.2"):
        FlowGRPOConfig(dynamics="cps", noise=1.2)
    with pytest.raises(TechniqueError, match="kl='official'"):
        FlowGRPOConfig(kl="official", kl_gradient="path")
    with pytest.raises(TechniqueError, match="beta=-1"):
        FlowGRPOConfig(beta=-1.0)
