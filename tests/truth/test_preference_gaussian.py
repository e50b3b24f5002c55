"""Diffusion-DPO on Bradley-Terry pairs against the known optimum p exp(r / beta_KL) of the Gaussian world.

It minimises a bound, so no share of the KL is demanded of it at the nominal beta; fixed before measuring: it goes a
part of the way there (10 to 95 %), a third of the pull stays nearer to the base, a tenth of beta overshoots the tilt.
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
