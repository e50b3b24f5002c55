"""IPGO: its three constraints, its rotation, its place in the prompt."""

import dataclasses
import math

import pytest
import torch
from toys import PROMPTS, blind, brightness, close, constant, pipeline, points

from surveylib.diffusion.dynamics import DDIM
from surveylib.techniques.contract import TechniqueError
from surveylib.techniques.registry import technique_class
from surveylib.techniques.test_time.base import base_latents
from surveylib.techniques.test_time.ipgo import (
    IPGO,
    IPGOConfig,
    Tokens,
    inserted,
    nonconformity,
    orthonormal,
    rotated,
)

SMALL = IPGOConfig(prefix=2, suffix=3, rank=5, lr=0.05, epochs=4, steps=3, guidance=2.0)


def small(**changes) -> IPGO:
    return IPGO(dataclasses.replace(SMALL, **changes))


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl"])
def test_it_raises_the_reward_and_counts(name):
    model = pipeline(name)
    result = small().sample(model, PROMPTS, brightness())
    rewards = [entry["reward"] for entry in result.trace]
    if name == "tiny-sd":  # random weights; tiny-sdxl's embeddings are so long that a token moves no picture
        assert (rewards[-1] > rewards[1]).all()  # random tokens are worse than none here: their start is the measure
    assert torch.equal(result.rewards, torch.stack(rewards).max(0).values)
    assert result.ledger.network_calls == 2 * 2 * 3 * 5
    assert result.ledger.backward_passes == 2 * 2 * 2 * 3  # three updates, the last two of three steps, two branches
    assert result.ledger.reward_calls == 2 * 5


@pytest.mark.parametrize("changes", [{"epochs": 0}, {"prefix": 0, "suffix": 0}])
def test_zero_steps_or_no_tokens_are_the_base_bit_for_bit(changes):
    model = pipeline("tiny-sd")
    result = small(**changes).sample(model, PROMPTS, brightness(), seed=3)
    assert torch.equal(result.latents, base_latents(model, PROMPTS, dynamics=DDIM(0.0), steps=3, guidance=2.0, seed=3))
    assert len(result.trace) == 1


def test_a_constant_reward_gives_the_base():
    model = pipeline("tiny-sd")
    base = base_latents(model, PROMPTS, dynamics=DDIM(0.0), steps=3, guidance=2.0)
    assert torch.equal(small().sample(model, PROMPTS, constant()).latents, base)


def test_the_basis_is_orthonormal_after_any_update():
    free = random(2, 12, 5).requires_grad_()
    basis = orthonormal(free)
    (basis * random(2, 12, 5, seed=1)).sum().backward()
    moved = orthonormal((free - 3.0 * free.grad).detach())
    for e in (basis, moved):
        assert torch.allclose(e.transpose(1, 2) @ e, torch.eye(5, dtype=torch.float64).expand(2, 5, 5), atol=1e-10)
    assert torch.allclose(orthonormal(basis.detach()), basis, atol=1e-10)
    assert not torch.allclose(moved, basis, atol=1e-2)


def test_the_range_holds_during_training():
    model, seen = pipeline("tiny-sd"), []

    class Watched(IPGO):
        def _step(self, model, optimiser, parameters, loss, epoch):
            seen.append([p.detach().clone() for p in parameters])
            super()._step(model, optimiser, parameters, loss, epoch)

    Watched(dataclasses.replace(SMALL, lr=2.0)).sample(model, PROMPTS, brightness())
    for free, _, z, angles, *_ in seen:
        assert z.abs().max() <= 1 and angles.abs().max() <= math.pi + 1e-6
        e = orthonormal(free)
        assert torch.allclose(e.transpose(1, 2) @ e, torch.eye(e.shape[2]).expand(2, -1, -1), atol=1e-5)
    assert (seen[1][2].abs() == 1).any()  # steps this long do run into the bound


def test_rotation_keeps_lengths_and_changes_tokens_and_the_picture():
    tokens, angles = random(2, 3, 8), random(2, 3, 2, seed=1)
    turned = rotated(tokens, angles)
    assert torch.allclose(turned.norm(dim=-1), tokens.norm(dim=-1)) and not torch.allclose(turned, tokens, atol=0.1)
    assert torch.allclose(rotated(tokens, torch.zeros_like(angles)), tokens)
    model = pipeline("tiny-sd")
    runs = [small(rotate=r, epochs=1).sample(model, PROMPTS, brightness()).trace[1]["reward"] for r in (True, False)]
    assert not torch.allclose(runs[0], runs[1], atol=1e-6)


def test_rotation_by_hand():
    token = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    quarter = torch.tensor([[[math.pi / 2, 0.0]]])
    assert torch.allclose(rotated(token, quarter), torch.tensor([[[-2.0, 1.0, -4.0, 3.0]]]), atol=1e-6)
    second = torch.tensor([[[0.0, math.pi / 2]]])  # pairs (1, 2) and (3, 0)
    assert torch.allclose(rotated(token, second), torch.tensor([[[4.0, -3.0, 2.0, -1.0]]]), atol=1e-6)
    later = rotated(token.repeat(1, 2, 1), quarter.repeat(1, 2, 1))[0, 1]  # token 1 starts one coordinate on
    assert torch.allclose(later, torch.tensor([4.0, -3.0, 2.0, -1.0]), atol=1e-6)


def test_the_angles_have_a_gradient():
    angles = random(1, 3, 2).requires_grad_()
    (rotated(random(1, 3, 8), angles) * random(1, 3, 8, seed=2)).sum().backward()
    assert (angles.grad.abs() > 0).all()


def test_tokens_stand_around_the_prompt_and_before_its_padding():
    embeds = torch.arange(6.0).reshape(1, 6, 1)
    prefix, suffix = torch.full((1, 1, 1), -1.0), torch.full((1, 2, 1), -2.0)
    assert inserted(embeds, [3], prefix, suffix).flatten().tolist() == [-1, 0, 1, 2, -2, -2]
    assert inserted(embeds, [2], prefix, suffix).flatten().tolist() == [-1, 0, 1, -2, -2, 2]


def test_nonconformity_by_hand():
    embeds = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [99.0, 99.0]]])
    value = nonconformity(embeds, [2], torch.tensor([[[8.0, 3.0]]]), torch.zeros(1, 0, 2))
    assert value.item() == pytest.approx(((4 - 2) + (1 - 0)) / 2)


def test_conformity_pulls_the_means_together():
    model = pipeline("tiny-sd")
    settings = {"epochs": 20, "lr": 0.02}
    loose = small(gamma=0.0, **settings).sample(model, PROMPTS, constant()).trace
    tight = small(gamma=100.0, **settings).sample(model, PROMPTS, constant()).trace
    assert torch.allclose(loose[-1]["nonconformity"], loose[1]["nonconformity"])
    assert (tight[-1]["nonconformity"] < 0.8 * tight[1]["nonconformity"]).all()


def test_the_number_of_trained_numbers_is_the_papers():
    sides = [Tokens(10, 30, 768, [torch.Generator().manual_seed(0)]) for _ in range(2)]
    assert sum(p.numel() for side in sides for p in side.parameters()) == 468_376


def test_prompts_do_not_depend_on_their_neighbours():
    model = pipeline("tiny-sd")
    together, apart = (small(batch=b).sample(model, PROMPTS, brightness()) for b in (2, 1))
    assert close(together.latents, apart.latents)


def test_bad_input_is_refused():
    for bad, word in (({"prefix": -1}, "prefix"), ({"rank": 0}, "rank"), ({"lr": 0.0}, "lr"),
                      ({"gamma": -1.0}, "gamma"), ({"last_steps": 51}, "last_steps"), ({"epochs": -1}, "epochs")):
        with pytest.raises(TechniqueError, match=word):
            IPGOConfig(**bad)
    model = pipeline("tiny-sd")
    with pytest.raises(TechniqueError, match="exceed the 77"):
        small().sample(model, ["a red circle " * 30], brightness())
    with pytest.raises(TechniqueError, match="orthonormal columns"):
        small(rank=30).sample(model, PROMPTS, brightness())
    with pytest.raises(TechniqueError, match="'blind' has none"):
        small().sample(model, PROMPTS, blind())
    with pytest.raises(TechniqueError, match="ExactModel has none"):
        small().sample(*(points()[0], ["any"], points()[1]))
    with pytest.raises(TechniqueError, match="flow schedule"):
        small().sample(pipeline("tiny-sd3"), PROMPTS, brightness())


def test_names():
    assert technique_class("ipgo") is IPGO and set(IPGO.PRESETS) == {"toy", "rehearsal", "single", "full"}
