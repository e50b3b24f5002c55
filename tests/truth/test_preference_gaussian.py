"""What is learned from preferences against the known optimum p exp(r / beta_KL) of the Gaussian world.

Diffusion-DPO on Bradley-Terry pairs: it minimises a bound, so no share of the KL is demanded of it at the nominal beta;
fixed before measuring: it goes a part of the way there (10 to 95 %), a third of the pull stays nearer to the base, a
tenth of beta overshoots the tilt. RankDPO with unit weights has the same minimiser, KTO no tilt to go to, and D3PO goes
to the mode.
"""

import math

import pytest
import torch

from surveylib.evaluation.gaussian import preference as world
from surveylib.evaluation.gaussian.policy_gradient import PROBLEM

pytestmark = pytest.mark.truth


def test_choices_follow_bradley_and_terry():
    feedback = world.pairs(20_000, seed=1).take(torch.arange(20_000))
    r = PROBLEM.reward(feedback.samples.flatten(0, 1)).reshape(-1, 2)
    expected = (r[:, 1] - r[:, 0]).sigmoid().mean()
    assert abs(feedback.labels.double().mean() - expected) < 0.015
    better = (r[:, 1] > r[:, 0]).long()
    assert (feedback.labels == better).double().mean() > 0.6


def test_first_update_has_loss_log_2_and_accuracy_one_half():
    _, first = world.diffusion_dpo(1.0)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["implicit_accuracy"] == pytest.approx(0.5, abs=1e-6)


def test_at_the_nominal_beta_a_bound_goes_a_part_of_the_way():
    share = PROBLEM.closed(world.diffusion_dpo(1.0)[0].samples)
    assert 0.10 < share < 0.95


def test_a_larger_beta_stays_nearer_to_the_base_and_a_small_one_overshoots():
    nominal, tight, loose = (world.diffusion_dpo(f)[0].samples for f in (1.0, 3.0, 0.1))
    assert PROBLEM.base.mean < tight.mean() < nominal.mean()
    assert PROBLEM.closed(tight) < PROBLEM.closed(nominal)
    assert PROBLEM.closed(loose) < PROBLEM.closed(nominal) and loose.mean() > nominal.mean()


def test_pairs_of_a_ranking_follow_bradley_and_terry():
    feedback = world.rankings(20_000, k=3, seed=1).take(torch.arange(20_000))
    r = PROBLEM.reward(feedback.samples.flatten(0, 1)).reshape(-1, 3)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        difference, won = r[:, i] - r[:, j], feedback.labels[:, i] > feedback.labels[:, j]
        for steep in (difference > 0.5, difference < -0.5):
            assert abs(won[steep].double().mean() - difference[steep].sigmoid().mean()) < 0.02


def test_likes_follow_the_sigmoid_of_the_reward():
    feedback = world.likes(40_000, seed=1).take(torch.arange(40_000))
    r = PROBLEM.reward(feedback.samples.flatten(0, 1))
    high = r > r.median()
    for part in (high, ~high):
        assert abs(feedback.labels[part].double().mean() - (r - r.mean())[part].sigmoid().mean()) < 0.015


def test_rankings_with_unit_weights_end_where_pairs_do():
    pairs, rankings = world.diffusion_dpo(1.0)[0].samples, world.rankdpo(1.0, "unit").samples
    assert abs(pairs.mean() - rankings.mean()) < 0.15 and abs(pairs.std() - rankings.std()) < 0.1
    assert abs(PROBLEM.closed(pairs) - PROBLEM.closed(rankings)) < 0.1


def test_weights_by_gain_follow_a_steeper_rule():
    assert world.rankdpo(1.0, "dcg").samples.mean() > world.rankdpo(1.0, "unit").samples.mean() + 0.05


def test_likes_go_past_the_tilt_to_what_is_liked_more_often_than_not():
    kto, tilt = world.diffusion_kto(1.0).samples, PROBLEM.optimum.sample(20_000)
    base = PROBLEM.reward(PROBLEM.base.sample(20_000, torch.Generator().manual_seed(0)))
    liked_most = [(PROBLEM.reward(x) > base.mean()).double().mean() for x in (kto, tilt)]
    assert liked_most[0] > liked_most[1] > (base > base.mean()).double().mean()
    assert kto.std() < tilt.std() and kto.mean() > tilt.mean() + 0.1  # past the tilt


def test_certain_comparisons_go_past_the_tilt_to_the_mode():
    d3po, tilt = world.d3po(0.1).samples, PROBLEM.optimum.sample(20_000)
    assert (d3po - 1).abs().mean() < 0.2 < (tilt - 1).abs().mean()  # the reward's mode is at 1
    assert PROBLEM.reward(d3po).mean() > PROBLEM.reward(tilt).mean() and d3po.std() < 0.5 * tilt.std()
