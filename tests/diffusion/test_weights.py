"""Named weights: policy, reference, copies; swapped without disturbing the graph."""

import pytest
import torch
from torch import nn

from surveylib.diffusion.weights import NamedWeights


class Model(NamedWeights):
    def __init__(self):
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


X = torch.tensor([[0.3, -1.0, 2.0]])


def shift(model, by=0.5):
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(by)


def test_a_copy_computes_what_the_policy_computed_when_it_was_taken():
    model = Model()
    before = model.network(X)
    model.snapshot("old")
    shift(model)
    after = model.network(X)
    with model.weights("old"):
        torch.testing.assert_close(model.network(X), before)
        with model.weights("policy"):  # the policy is what is in place
            pass
    torch.testing.assert_close(model.network(X), after)
    assert (before - after).abs().item() > 0.1


def test_the_policy_comes_back_after_an_error():
    model = Model()
    model.snapshot("old")
    shift(model)
    after = model.network(X)
    with pytest.raises(RuntimeError, match="stop"), model.weights("old"):
        raise RuntimeError("stop")
    torch.testing.assert_close(model.network(X), after)


@pytest.mark.truth
def test_a_graph_built_before_a_swap_backpropagates_through_the_policy():
    model, alone = Model(), Model()
    for m in (model, alone):
        shift(m)
    model.snapshots["old"] = {key: torch.zeros_like(p) for key, p in model.network.named_parameters()}
    policy = model.network(X)
    with model.weights("old"):
        old = model.network(X)
    ((policy - old.detach()) ** 2).sum().backward()
    alone.network(X).square().sum().backward()  # the zero network gives zero
    for parameter, expected in zip(model.network.parameters(), alone.network.parameters()):
        torch.testing.assert_close(parameter.grad, expected.grad)


def test_reference_without_lora_is_a_copy_that_must_be_taken():
    model = Model()
    with pytest.raises(KeyError, match=r"there are policy\b.*snapshot"), model.reference():
        pass
    model.snapshot("reference")
    before = model.network(X)
    shift(model)
    with model.reference():
        torch.testing.assert_close(model.network(X), before)


@pytest.mark.truth
def test_ema_is_the_geometric_average():
    model = Model()
    first = model.network[0].weight.detach().clone()
    model.update_ema("ema", 0.9)  # taken now: equal to the policy
    shift(model, 1.0)
    model.update_ema("ema", 0.9)
    torch.testing.assert_close(model.snapshots["ema"]["0.weight"], first + 0.1)
    shift(model, 1.0)
    model.update_ema("ema", 0.9)
    torch.testing.assert_close(model.snapshots["ema"]["0.weight"], 0.9 * (first + 0.1) + 0.1 * (first + 2.0))
    with pytest.raises(ValueError, match="decay"):
        model.update_ema("ema", 1.5)


def test_restore_writes_the_copy_into_the_policy_and_optimisers_go_on():
    model = Model()
    model.snapshot("start")
    start = model.network(X)
    optimiser = torch.optim.SGD(model.trainable_parameters(), lr=0.1)
    shift(model)
    model.restore("start")
    torch.testing.assert_close(model.network(X), start)
    model.network(X).sum().backward()
    optimiser.step()
    assert (model.network(X) - start).abs().item() > 0
    with model.weights("start"):
        torch.testing.assert_close(model.network(X), start)


def test_only_trainable_weights_are_copied():
    model = Model()
    model.network[0].requires_grad_(False)
    model.snapshot("old")
    assert set(model.snapshots["old"]) == {"2.weight", "2.bias"}
    assert len(model.trainable_parameters()) == 2
    model.network.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to copy"):
        model.snapshot("new")


def test_copies_survive_a_round_trip_and_must_fit():
    model, other = Model(), Model()
    shift(model)
    model.snapshot("old")
    other.load_snapshots(model.snapshots)
    with other.weights("old"):
        torch.testing.assert_close(other.network(X), model.network(X))
    other.network = nn.Linear(3, 1)
    with pytest.raises(ValueError, match="does not fit"):
        other.load_snapshots(model.snapshots)
    with pytest.raises(ValueError, match="another set of weights"), other.weights("old"):
        pass


def test_policy_is_no_copy():
    with pytest.raises(ValueError, match="always there"):
        Model().snapshot("policy")
