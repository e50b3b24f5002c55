"""Rules and smoke runs of Diffusion-DPO, Diffusion-KTO and RankDPO."""

import math

import pytest
import torch

from surveylib.alignment.engine import align
from surveylib.diffusion.zoo import load_model
from surveylib.techniques.contract import TechniqueError, Training
from surveylib.techniques.preference.data import from_tensors
from surveylib.techniques.preference.diffusion_dpo import DiffusionDPO, DiffusionDPOConfig, dpo_loss, implicit_accuracy
from surveylib.techniques.preference.diffusion_kto import DiffusionKTO, DiffusionKTOConfig, kto_loss
from surveylib.techniques.preference.rankdpo import RankDPO, RankDPOConfig, dcg_weights, rankdpo_loss

CASES = [(DiffusionDPO, "pairs", 2), (DiffusionKTO, "binary", 1), (RankDPO, "rankings", 3)]


def data(kind: str, k: int):
    pictures = torch.rand(4, k, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(12.0).reshape(4, 3) / 12 if kind == "rankings" else torch.tensor([0, 1, 0, 1])
    return from_tensors(kind, ["a", "b", "c", "d"], pictures, labels)


@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"])
@pytest.mark.parametrize(("technique", "kind", "k"), CASES)
def test_runs_on_every_family_and_starts_at_the_reference(name, technique, kind, k):
    training = Training(epochs=2, samples=4, micro_batch=2, sample_batch=4, lora_rank=2)
    first, second = align(load_model(name), technique(), data(kind, k), [], training)
    if kind == "pairs":
        assert first.metrics["loss"] == pytest.approx(math.log(2))
        assert first.metrics["implicit_accuracy"] == 0.5
    assert math.isfinite(second.metrics["loss"]) and second.metrics["grad_norm"] > 0


def test_dpo_margin_changes_sign_and_the_log_stands_inside_the_mean():
    w, l = torch.tensor([0.3, -0.3]), torch.zeros(2)
    assert torch.equal(implicit_accuracy(w, l), torch.tensor([1.0, 0.0]))
    assert dpo_loss(w, l, 4.0)[0] == pytest.approx(math.log1p(math.exp(-0.6)))
    assert dpo_loss(l, w, 4.0)[0] == pytest.approx(math.log1p(math.exp(0.6)))
    assert dpo_loss(w, l, 4.0).mean() > math.log(2) + 1e-3


def test_rankdpo_with_two_pictures_and_unit_weight_is_dpo():
    s, gains = torch.randn(5, 2), torch.tensor([[1.0, 0.0]]).expand(5, 2)
    assert torch.allclose(rankdpo_loss(s, gains, 7.0, torch.ones(5, 2, 2)), dpo_loss(s[:, 0], s[:, 1], 7.0))
    found = dcg_weights(torch.tensor([[1.0, 0.0]]))[0, 0, 1]
    assert found == pytest.approx(1 / math.log(2) - 1 / math.log(3))


def test_kto_reference_point_carries_no_gradient():
    g, z = torch.randn(4, requires_grad=True), torch.tensor(0.2, requires_grad=True)
    kto_loss(g, torch.tensor([1, 0, 1, 0]), z, 3.0).sum().backward()
    assert z.grad is None and g.grad.abs().min() > 0
    assert (g.grad * torch.tensor([-1, 1, -1, 1]) > 0).all()


@pytest.mark.parametrize("config", [DiffusionDPOConfig, DiffusionKTOConfig, RankDPOConfig])
def test_beta_of_zero_and_wrong_data_are_refused(config):
    with pytest.raises(TechniqueError, match="beta=0"):
        config(beta=0.0)
    with pytest.raises(TechniqueError, match="pairs"):
        next(align(load_model("tiny-sd"), DiffusionDPO(), data("binary", 1), [], Training()))
