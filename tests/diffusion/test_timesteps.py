import pytest
import torch

from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.diffusion.timesteps import logit_normal, rollout_grid, sample_times, stratified, uniform

VP, FLOW = VPSchedule.linear(), FlowSchedule(3.0)


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("name", ["uniform", "logit_normal", "stratified", "rollout_grid"])
@pytest.mark.parametrize("schedule", [VP, FLOW], ids=["vp", "flow"])
def test_times_are_in_range_and_a_function_of_the_seed(name, schedule):
    t = sample_times(name, 1000, schedule, generator=generator())
    assert t.shape == (1000,)
    assert t.dtype == (torch.int64 if schedule is VP else torch.float32)
    assert t.min() >= 0 and t.max() <= schedule.start
    schedule.coefficients(t)  # accepted as they are
    assert torch.equal(t, sample_times(name, 1000, schedule, generator=generator()))


def test_uniform_reaches_every_timestep():
    t = uniform(20000, VPSchedule.linear(T=50), generator=generator())
    assert torch.bincount(t, minlength=50).float().div(400).sub(1).abs().max() < 0.25


def test_logit_normal_has_the_logits_it_says():
    logit = torch.logit(logit_normal(20000, FLOW, generator=generator(), mean=0.5, std=0.8).double())
    assert logit.mean() == pytest.approx(0.5, abs=0.02) and logit.std() == pytest.approx(0.8, abs=0.02)


def test_stratified_puts_one_in_each_stratum_in_random_order():
    t = stratified(100, FLOW, generator=generator())
    assert (t.double() * 100).floor().sort().values.tolist() == list(range(100))
    assert not torch.equal(t, t.sort().values)


def test_shifted_times_have_the_distribution_of_the_shifted_grid():
    sigma = uniform(20000, FLOW, generator=generator(), shifted=True)
    assert (sigma > 0.75).float().mean() == pytest.approx(0.5, abs=0.02)  # 0.5 shifted by 3


def test_rollout_grid_holds_only_visited_times():
    visited = set(VP.grid(20)[:-1].long().tolist())
    assert set(rollout_grid(500, VP, generator=generator(), steps=20).tolist()) == visited
    assert set(rollout_grid(500, VP, generator=generator(), steps=20, first=18).tolist()) == {0, 50}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="uniform, logit_normal, stratified, rollout_grid"):
        sample_times("cosine", 3, VP)
    with pytest.raises(ValueError, match="no step left"):
        rollout_grid(3, VP, steps=4, first=4)
