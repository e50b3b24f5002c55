"""Best-of-N: its identities, its law, its distance from the base."""

import itertools
import math

import pytest
import torch
from toys import PIPELINES, PROMPTS, blind, brightness, close, constant, pipeline, points

from surveylib.diffusion.dynamics import DDIM
from surveylib.rewards.contract import FunctionReward, RewardError
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import technique_class
from surveylib.techniques.test_time.base import base_latents
from surveylib.techniques.test_time.best_of_n import (
    BestOfN,
    BestOfNConfig,
    best,
    expected_best,
    kl_bound,
    law_of_best,
    soft_best,
)


@pytest.mark.parametrize("name", PIPELINES)
def test_it_runs_on_every_kind_of_pipeline_and_counts(name):
    model, n = pipeline(name), 3
    result = BestOfN(BestOfNConfig(n=n, steps=3)).sample(model, PROMPTS, blind(), seed=1)
    assert result.images.shape == (2, 3, *model.resolution) and result.latents.shape == (2, *model.latent_shape)
    branches = 1 if model.guidance_mode == "embedded" else 2
    assert result.ledger.network_calls == 2 * n * 3 * branches and result.ledger.backward_passes == 0
    assert result.ledger.reward_calls == result.ledger.decodes == 2 * n and result.ledger.wall > 0
    rewards = result.trace[0]["rewards"]
    assert torch.equal(result.rewards, rewards.max(1).values)
    assert torch.allclose(brightness()(result.images, PROMPTS), result.rewards)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_one_candidate_is_the_base_sampler_bit_for_bit(eta):
    model = pipeline("tiny-sd")
    result = BestOfN(BestOfNConfig(n=1, steps=4, eta=eta)).sample(model, PROMPTS, brightness(), seed=5)
    base = base_latents(model, PROMPTS, dynamics=DDIM(eta), steps=4, seed=5)
    assert torch.equal(result.latents, base)
    assert not torch.equal(base, base_latents(model, PROMPTS, dynamics=DDIM(eta), steps=4, seed=6))


@pytest.mark.parametrize("select", ["best", "soft"])
def test_a_constant_reward_or_no_strength_gives_the_base(select):
    model = pipeline("tiny-sd")
    base = base_latents(model, PROMPTS, dynamics=DDIM(0.0), steps=3)
    result = BestOfN(BestOfNConfig(n=4, steps=3, select=select)).sample(model, PROMPTS, constant())
    assert close(result.latents, base)  # another batch: equal up to the order of sums
    if select == "soft":
        result = BestOfN(BestOfNConfig(n=4, steps=3, select=select, strength=0)).sample(model, PROMPTS, brightness())
        assert close(result.latents, base)


def test_the_curve_never_falls_and_larger_runs_contain_smaller_ones():
    model = pipeline("tiny-sd")
    runs = {n: BestOfN(BestOfNConfig(n=n, steps=3)).sample(model, PROMPTS, brightness()) for n in (1, 2, 5, 8)}
    largest = runs[8].trace[0]["best_so_far"]
    for n, run in runs.items():
        assert close(run.rewards, largest[:, n - 1])
    assert (largest.diff(dim=1) >= 0).all() and (largest[:, -1] > largest[:, 0]).any()


def test_how_batches_are_cut_does_not_matter():
    model = pipeline("tiny-sd")
    whole, cut = (BestOfN(BestOfNConfig(n=3, steps=3, batch=b)).sample(model, PROMPTS, brightness()) for b in (64, 4))
    assert close(whole.trace[0]["rewards"], cut.trace[0]["rewards"])


def test_a_prompt_keeps_its_noise_whatever_stands_behind_it():
    model = pipeline("tiny-sd")
    one, two = (BestOfN(BestOfNConfig(n=3, steps=3)).sample(model, PROMPTS[:k], brightness()) for k in (1, 2))
    assert close(one.latents[0], two.latents[0])


def test_ties_go_to_the_first():
    assert best(torch.tensor([[1.0, 3, 3], [2, 2, 2]])).tolist() == [1, 0]


def test_the_soft_choice_has_the_softmax_law():
    rewards = torch.tensor([[0.0, 1.0, 0.5, -2.0]]).expand(20_000, -1)
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(soft_best(rewards, 2.0, u), minlength=4) / 20_000
    assert torch.allclose(counts.double(), torch.softmax(2.0 * rewards[0].double(), 0), atol=0.012)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_law_of_the_best_is_that_of_all_tuples(n):
    p = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    law = torch.zeros(3, dtype=torch.float64)
    for draw in itertools.product(range(3), repeat=n):
        law[max(draw)] += p[list(draw)].prod()
    assert torch.allclose(law_of_best(p, n), law)


@pytest.mark.parametrize("n", [2, 4, 64])
def test_the_distance_from_the_base_is_bounded_and_the_bound_is_reached_without_ties(n):
    gaps = []
    for outcomes in (4, 100, 100_000):
        p = torch.full((outcomes,), 1 / outcomes, dtype=torch.float64)
        q = law_of_best(p, n)
        gaps.append(kl_bound(n) - float(torch.special.xlogy(q, q / p).sum()))
    assert gaps[0] > gaps[1] > gaps[2] > 0
    assert gaps[2] < 1e-3


def test_expected_best_is_the_mean_over_all_subsets():
    rewards = torch.tensor([[0.3, -1.0, 2.0, 0.7, 0.1]])
    for n in range(1, 6):
        subsets = [max(s) for s in itertools.combinations(rewards[0].tolist(), n)]
        assert float(expected_best(rewards, n)) == pytest.approx(sum(subsets) / len(subsets))
    with pytest.raises(TechniqueError, match="n=6"):
        expected_best(rewards, 6)


def test_bad_input_is_refused():
    for bad, word in (({"n": 0}, "n=0"), ({"select": "worst"}, "worst"), ({"strength": math.inf}, "strength"),
                      ({"steps": 0}, "steps"), ({"batch": 0}, "batch"), ({"eta": 2.0}, "eta")):
        with pytest.raises(TechniqueError, match=word):
            BestOfNConfig(**bad)
    model, reward = points()
    with pytest.raises(TechniqueError, match="no prompts"):
        BestOfN(BestOfNConfig(n=2, steps=2)).sample(model, [], reward)
    with pytest.raises(TechniqueError, match="learns from a reward"):
        BestOfN(BestOfNConfig(n=2, steps=2)).sample(model, ["any"], "pickscore")
    nan = FunctionReward(lambda x, prompts: x.mean((1, 2, 3)) * float("nan"), "broken", False, False)
    with pytest.raises(RewardError, match="NaN"):
        BestOfN(BestOfNConfig(n=2, steps=2)).sample(pipeline("tiny-sd"), PROMPTS, nan)


def test_presets():
    assert technique_class("best_of_n") is BestOfN
    assert set(BestOfN.PRESETS) == {"toy", "single", "full"}
