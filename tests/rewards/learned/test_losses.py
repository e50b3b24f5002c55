"""The loss rules against closed forms."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from clip_for_tests import examples, make_trunk
from torch.nn import functional as F

from surveylib.rewards.contract import FunctionReward
from surveylib.rewards.learned import aesthetic, hpsv3, imagereward, mps, pickscore
from surveylib.rewards.learned.ensemble import Ensemble, lower_confidence_bound
from surveylib.rewards.learned.model import HEADS, LearnedReward, RewardModel
from surveylib.rewards.learned.trunk import Features, Trunk, Widths

A, B = torch.randn(2, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.mark.truth
def test_softmax_two_is_bradley_terry_and_cross_entropy():
    won = pickscore.preference_loss(A, B, torch.ones(50, dtype=torch.float64))
    lost = pickscore.preference_loss(A, B, torch.zeros(50, dtype=torch.float64))
    logits = torch.stack([A, B], 1)
    assert torch.allclose(won, -F.logsigmoid(A - B)) and torch.allclose(lost, -F.logsigmoid(B - A))
    assert torch.allclose(won, F.cross_entropy(logits, torch.zeros(50, dtype=torch.long), reduction="none"))
    p = torch.rand(50, dtype=torch.float64)
    kl = F.kl_div(logits.log_softmax(1), torch.stack([p, 1 - p], 1), reduction="none").sum(1)
    assert torch.allclose(pickscore.preference_loss(A, B, p), kl)


@pytest.mark.truth
def test_a_tie_costs_nothing_and_pulls_nowhere_at_equal_scores():
    a = torch.zeros(3, requires_grad=True)
    loss = pickscore.preference_loss(a, torch.zeros(3), torch.full((3,), 0.5))
    loss.sum().backward()
    assert loss.abs().max() < 1e-7 and a.grad.abs().max() == 0
    moved = pickscore.preference_loss(torch.tensor([1.0]), torch.zeros(1), torch.tensor([0.5]))
    assert moved.item() == pytest.approx(-0.5 * math.log(torch.sigmoid(torch.tensor(1.0)))
                                         - 0.5 * math.log(torch.sigmoid(torch.tensor(-1.0))) - math.log(2), abs=1e-6)


@pytest.mark.truth
def test_every_prompt_weighs_the_same():
    ids = torch.tensor([7, 7, 7, 2, 9, 9])
    weights = pickscore.example_weights(ids)
    assert torch.allclose(weights, torch.tensor([1, 1, 1, 3, 1.5, 1.5]) / 3)
    shares = pickscore.normalised(weights)
    assert shares.sum().item() == pytest.approx(1)
    assert all(shares[ids == i].sum().item() == pytest.approx(1 / 3) for i in (7, 2, 9))
    for bad in ([0.0, 0.0], [1.0, -0.5]):
        with pytest.raises(ValueError, match="at least 0"):
            pickscore.normalised(torch.tensor(bad))


@pytest.mark.truth
def test_ranking_loss_is_the_mean_over_all_ranked_pairs():
    scores, ranks = torch.tensor([0.3, -1.0, 2.0, 0.7]), torch.tensor([2, 3, 1, 2])
    pairs = [(i, j) for i, j in itertools.permutations(range(4), 2) if ranks[i] < ranks[j]]
    expected = np.mean([math.log1p(math.exp(-(scores[i] - scores[j]).item())) for i, j in pairs])
    assert len(pairs) == 5 and imagereward.ranking_loss(scores, ranks).item() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="no pair"):
        imagereward.ranking_loss(scores, torch.ones(4))


@pytest.mark.truth
def test_expected_loss_by_quadrature_samples_and_closed_forms():
    mu, sigma = torch.tensor([-3.0, 0.0, 0.4, 2.0, 6.0]), torch.tensor([0.1, 1.0, 3.0, 0.5, 5.0])
    mu, sigma = mu.double(), sigma.double()
    exact = hpsv3.expected_loss(mu, sigma)
    drawn = hpsv3.expected_loss(mu, sigma, "monte-carlo", torch.Generator().manual_seed(1), samples=400_000)
    assert torch.allclose(exact, drawn, atol=0.02)
    # log sigmoid(z) - log sigmoid(-z) = z
    assert torch.allclose(hpsv3.expected_loss(-mu, sigma) - exact, mu, atol=1e-9)
    # without variance: Bradley-Terry
    assert torch.allclose(hpsv3.expected_loss(mu, torch.zeros(5).double()), -F.logsigmoid(mu))
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * grid**2) / math.sqrt(2 * math.pi)
    whole = (-F.logsigmoid(mu[:, None] + sigma[:, None] * grid) * density).sum(1) * (grid[1] - grid[0])
    assert torch.allclose(exact, whole, atol=1e-4)
    with pytest.raises(ValueError, match="quadrature, monte-carlo"):
        hpsv3.expected_loss(mu, sigma, "simpson")


@pytest.mark.truth
def test_both_outcomes_of_a_pair_in_the_hpsv3_head():
    head = hpsv3.HPSv3Head(make_trunk().widths)
    first, second = torch.randn(6, 2), torch.randn(6, 2)
    lost, won = head.loss(first, second, torch.zeros(6)), head.loss(second, first, torch.ones(6))
    assert torch.allclose(lost, won, atol=1e-5)
    assert torch.allclose(head.loss(first, second, torch.full((6,), 0.5)),
                          (lost + head.loss(first, second, torch.ones(6))) / 2, atol=1e-6)


@pytest.mark.truth
def test_dimensions_add_up_and_missing_answers_do_not_count():
    first, second = torch.randn(4, 3), torch.randn(4, 3)
    preference = torch.tensor([[1, 0, math.nan], [math.nan] * 3, [0.5, 1, 1], [0, math.nan, math.nan]])
    expected = torch.zeros(4)
    for i, d in itertools.product(range(4), range(3)):
        if not preference[i, d].isnan():
            expected[i] += pickscore.preference_loss(first[i, d], second[i, d], preference[i, d])
    assert torch.allclose(mps.dimension_loss(first, second, preference), expected)


def test_condition_mask_keeps_what_is_like_the_condition():
    prompt = torch.eye(4)[None]
    valid = torch.tensor([[True, True, True, False]])
    mask = mps.condition_mask(prompt, torch.tensor([[0.0, 2.0, 1.0, 9.0]]), valid, 0.3)
    assert mask.tolist() == [[False, True, True, False]]
    assert mps.condition_mask(prompt, torch.tensor([[0.0, 2.0, 1.0, 9.0]]), valid, 0.6).tolist() == [
        [False, True, False, False]]


def test_rating_loss_and_scalar_layers():
    assert aesthetic.rating_loss(torch.tensor([0.2]), torch.tensor([0.5])).item() == pytest.approx(0.09)
    layers = imagereward.scalar_mlp(768, imagereward.PAPER_WIDTHS)
    shapes = [tuple(m.weight.shape) for m in layers if isinstance(m, torch.nn.Linear)]
    assert shapes == [(1024, 768), (128, 1024), (64, 128), (16, 64), (1, 16)]
    assert [m.p for m in layers if isinstance(m, torch.nn.Dropout)] == [0.2, 0.2, 0.1]
    layers.eval()  # no activations: the layers are one linear map
    x, y = torch.randn(2, 3, 768)
    assert torch.allclose(layers(x + y), layers(x) + layers(y) - layers(torch.zeros(1, 768)), atol=1e-5)


@pytest.mark.truth
def test_centre_and_spread_are_a_change_of_units_and_tokens_are_read():
    widths = Widths(8, 6, 4)
    draw = torch.Generator().manual_seed(0)
    seen = Features(torch.randn(5, 8, generator=draw), torch.zeros(5, 8), torch.randn(5, 7, 6, generator=draw),
                    torch.zeros(5, 3, 4), torch.zeros(5, dtype=torch.long))
    plain = aesthetic.AestheticHead(widths, (4,)).eval()
    scaled = aesthetic.AestheticHead(widths, (4,), centre=0.7, spread=0.05).eval()
    scaled.load_state_dict(plain.state_dict())
    rating = torch.rand(5, generator=draw)
    assert torch.allclose(scaled(seen), 0.7 + 0.05 * plain(seen))
    units = plain.rating_loss(plain(seen), (rating - 0.7) / 0.05)
    assert torch.allclose(scaled.rating_loss(scaled(seen), rating), units, rtol=1e-4)
    other = replace(seen, image_tokens=seen.image_tokens.roll(1, 0))
    wide = aesthetic.AestheticHead(widths, (4,), tokens=True).eval()
    assert torch.equal(plain(seen), plain(other)) and not torch.allclose(wide(seen), wide(other))
    with pytest.raises(ValueError, match="spread=0"):
        aesthetic.AestheticHead(widths, spread=0)


@pytest.mark.truth
def test_lower_confidence_bound_is_mean_minus_k_deviations():
    scores = torch.tensor([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    assert torch.allclose(lower_confidence_bound(scores, 0.5), torch.tensor([3 - 0.5 * 2.0, 2.0]), atol=1e-6)
    assert torch.equal(lower_confidence_bound(scores[:1], 9.0), scores[0])
    same = torch.ones(3, 2, requires_grad=True)
    lower_confidence_bound(same, 1.0).sum().backward()
    assert same.grad.isfinite().all()


def test_ensemble_of_rewards():
    members = [FunctionReward(lambda images, prompts, c=c: images.mean((1, 2, 3)) * c, f"m{c}", True, False, (0, c))
               for c in (1, 2, 6)]
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    lcb, mean = Ensemble(members, k=1.0), Ensemble(members, k=0.0)
    assert torch.allclose(mean(images), images.mean((1, 2, 3)) * 3)
    assert torch.allclose(lcb(images), images.mean((1, 2, 3)) * (3 - math.sqrt(7)), atol=1e-4)
    assert lcb.differentiable and not lcb.needs_prompt
    assert lcb.range[0] <= lcb(images).min() <= lcb(images).max() <= lcb.range[1]
    with pytest.raises(ValueError, match="at least one member"):
        Ensemble([])


@pytest.mark.truth
def test_the_cut_trunk_is_clip():
    pictures, captions, _ = examples()
    for unlock in ((0, 0), (2, 1), (5, 3)):
        trunk = make_trunk(unlock)
        with torch.no_grad():
            ours = trunk(pictures[:6], captions[:6])
            theirs = trunk.clip(input_ids=trunk.tokens(captions[:6]), pixel_values=pictures[:6] * 2 - 1)
        assert torch.allclose(F.normalize(ours.image, dim=-1), theirs.image_embeds, atol=1e-6)
        assert torch.allclose(F.normalize(ours.text, dim=-1), theirs.text_embeds, atol=1e-6)
    with pytest.raises(ValueError, match="has 5"):
        make_trunk((6, 0))


@pytest.mark.truth
@pytest.mark.parametrize("name", sorted(HEADS))
def test_gradient_to_the_pixels_is_the_difference_quotient(name):
    torch.manual_seed(1)
    model = RewardModel(make_trunk(), name).double().eval()
    pictures = examples()[0][:2].double().clamp(0.1, 0.9).requires_grad_(True)
    features = lambda x: model.head(model.trunk(x, examples()[1][:2])).sum()  # noqa: E731
    gradient = torch.autograd.grad(features(pictures), pictures)[0]
    assert gradient.abs().max() > 0
    # Along the gradient, where the slope is largest: heads return float32, and ReLU has kinks.
    direction = gradient / gradient.norm() * gradient.numel() ** 0.5
    with torch.no_grad():
        quotient = (features(pictures + 2e-4 * direction) - features(pictures - 2e-4 * direction)) / 4e-4
    assert (gradient * direction).sum().item() == pytest.approx(quotient.item(), rel=0.03)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_heads_keep_the_contract(name):
    torch.manual_seed(1)
    reward = LearnedReward(RewardModel(make_trunk((1, 0)), name), name)
    pictures = examples()[0][:3].clone().requires_grad_(True)
    scores = reward(pictures, examples()[1][:3] if reward.needs_prompt else None)
    scores.sum().backward()
    assert scores.shape == (3,) and pictures.grad.abs().sum() > 0
    assert ((scores >= reward.range[0]) & (scores <= reward.range[1])).all()
    assert reward.outputs(pictures, examples()[1][:3]).shape == (3, len(reward.model.head.outputs))
    assert reward.needs_prompt == (name != "aesthetic")


def test_unknown_head_lists_the_known():
    with pytest.raises(ValueError, match="pickscore, imagereward"):
        RewardModel(make_trunk(), "elo")


def test_pictures_of_any_size_are_brought_to_the_trunks():
    trunk: Trunk = make_trunk()
    picture = examples()[0][:1]
    large = F.interpolate(picture, (128, 192), mode="nearest")
    assert trunk.preprocess(large).shape == (1, 3, 64, 64)
    assert torch.allclose(trunk.preprocess(picture), picture * 2 - 1, atol=1e-6)
