"""Weights, effective sample size, ancestors."""

import pytest
import torch

from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.test_time.resampling import (
    SCHEMES,
    choose,
    effective_sample_size,
    log_mean_exp,
    normalised,
    resample,
)

WEIGHTS = torch.tensor([0.05, 0.4, 0.15, 0.3, 0.1], dtype=torch.float64)


def uniforms(rows: int, k: int, seed: int = 3) -> torch.Tensor:
    return torch.rand(rows, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_effective_sample_size_between_one_and_k():
    assert effective_sample_size(torch.zeros(1, 4)).item() == pytest.approx(4)
    assert effective_sample_size(torch.tensor([[0.0, -1e9, -1e9]])).item() == pytest.approx(1)
    assert effective_sample_size(torch.tensor([[0.5, 0.25, 0.25]]).log()).item() == pytest.approx(1 / 0.375)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_children_are_unbiased(scheme):
    rows, k = 40_000, 5
    ancestors = resample(WEIGHTS.log().expand(rows, -1), uniforms(rows, k), scheme)
    children = torch.stack([(ancestors == j).double().sum(1) for j in range(k)], 1)
    assert torch.allclose(children.mean(0), k * WEIGHTS, atol=0.03)
    if scheme == "systematic":
        assert (children >= (k * WEIGHTS + 1e-9).floor()).all() and (children <= (k * WEIGHTS - 1e-9).ceil()).all()


def test_systematic_varies_less_than_stratified_and_that_less_than_multinomial():
    spread = [
        torch.stack([(resample(WEIGHTS.log().expand(5000, -1), uniforms(5000, 5), s) == j).double().sum(1)
                     for j in range(5)], 1).var(0).sum() for s in SCHEMES
    ]
    assert spread[0] <= spread[1] < spread[2]


@pytest.mark.parametrize("scheme", ["systematic", "stratified"])
def test_equal_weights_keep_every_particle(scheme):
    assert torch.equal(resample(torch.full((9, 7), -3.0), uniforms(9, 7), scheme), torch.arange(7).expand(9, 7))


def test_a_particle_of_weight_zero_is_never_taken():
    log_weights = torch.tensor([[0.0, -1.0, float("-inf")]])
    points = torch.tensor([[0.0, 0.5, 1 - 1e-17]], dtype=torch.float64)
    assert resample(log_weights, points, "multinomial").max() == 1
    first = torch.tensor([[float("-inf"), 0.0, -1.0]])
    assert resample(first, points, "multinomial").min() == 1


def test_huge_log_weights_do_not_overflow():
    assert normalised(torch.tensor([[1e5, 1e5 + 1]])).tolist()[0] == pytest.approx([0.26894142, 0.73105858], abs=1e-4)
    assert log_mean_exp(torch.tensor([[1e5, 1e5]])).item() == pytest.approx(1e5)


def test_all_weights_zero_or_nan_name_the_prompts():
    nothing = torch.tensor([[0.0, 1.0], [float("-inf")] * 2])
    with pytest.raises(TechniqueError, match="prompts 1 have weight zero"):
        resample(nothing, uniforms(2, 2))
    with pytest.raises(TechniqueError, match="NaN or infinite for prompts 0"):
        choose(torch.tensor([[float("nan"), 0.0]]), torch.zeros(1))
    with pytest.raises(TechniqueError, match="unknown resampling scheme"):
        resample(torch.zeros(1, 2), uniforms(1, 2), "residual")


def test_equal_weights_choose_particle_zero():
    assert choose(torch.full((3, 4), 0.7), torch.tensor([0.1, 0.5, 0.99])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_draw_after_resampling_is_fair_although_its_weights_are_equal(scheme):
    """Weights 1, 1, 1, 5 of particles marked 0, 0, 0, 1: resampled, then one is drawn. P(mark) = 5/8."""
    prompts = 20_000
    log_weights = torch.tensor([1.0, 1, 1, 5]).log().expand(prompts, 4)
    drawn = resample(log_weights, uniforms(prompts, 4), scheme)
    once = torch.ones(prompts, dtype=torch.bool)
    chosen = choose(torch.zeros(prompts, 4), uniforms(prompts, 1, seed=9)[:, 0], ~once)
    marks = (drawn == 3).double().gather(1, chosen[:, None]).mean().item()
    assert marks == pytest.approx(5 / 8, abs=4 * (15 / 64 / prompts) ** 0.5)
