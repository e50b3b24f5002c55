"""The arithmetic of the engine's overhead; no seconds are asserted."""

import math
from types import SimpleNamespace

import pytest
import torch

from surveylib.alignment import overhead
from surveylib.alignment.overhead import Share, measure, table
from surveylib.alignment.run import Recipe
from surveylib.runs.ledger import Ledger


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [0.0]
    for module in (overhead, __import__("surveylib.runs.ledger", fromlist=["time"])):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def wait(seconds):
        now[0] += seconds

    return wait


def test_the_ratio_is_wall_over_the_watched_calls(clock):
    ledger, share = Ledger(), Share()

    def work():
        clock(1.0)
        with ledger.timed("network"):
            clock(6.0)
        with ledger.timed("reward"):
            clock(2.0)
        clock(1.0)

    share.around(ledger, work)()
    assert (share.wall, share.inside, share.ratio) == (10.0, 8.0, 1.25)


def test_seconds_inside_another_part_count_once(clock):
    ledger = Ledger()
    with ledger.timed("backward"):
        clock(3.0)
        with ledger.timed("network"):
            clock(2.0)
    assert (ledger.seconds["backward"], ledger.seconds["network"]) == (3.0, 2.0)


def test_gradients_that_a_technique_takes_are_backward_seconds(clock, monkeypatch):
    """3 s of the gradient, of which the network, run again inside it, takes 2."""
    ledger, own, plain = Ledger(), Ledger(), torch.autograd.grad

    def slow(*given, **options):
        clock(1.0)
        model.network(torch.zeros(1, 1))
        return plain(*given, **options)

    class Network(torch.nn.Module):
        def forward(self, x):
            clock(2.0)
            return x

    model = SimpleNamespace(network=Network(), decode=None, encode_images=None)
    monkeypatch.setattr(torch.autograd, "grad", slow)
    x = torch.ones(1, requires_grad=True)
    with ledger.watch(model), own.watch():
        (gradient,) = torch.autograd.grad(3 * x, x)
    assert gradient == 3 and torch.autograd.grad is slow
    assert (ledger.seconds["backward"], ledger.seconds["network"], ledger.network_calls) == (1.0, 2.0, 1)
    assert own.seconds["backward"] == 3.0
    with pytest.raises(ZeroDivisionError), ledger.watch():
        raise ZeroDivisionError
    assert torch.autograd.grad is slow


def test_a_gradient_inside_the_network_counts_once(clock):
    class Conservative(torch.nn.Module):
        """Takes 5 s, of which a gradient takes 4."""

        def forward(self, x):
            clock(1.0)
            x = x.detach().requires_grad_()
            y = x.square().sum()
            y.register_hook(lambda grad: clock(4.0))
            return torch.autograd.grad(y, x)[0]

    ledger, network = Ledger(), Conservative()
    with ledger.watch(SimpleNamespace(network=network, decode=None, encode_images=None)):
        assert network(torch.tensor([3.0])) == 6.0
    assert (ledger.seconds["network"], ledger.seconds["backward"]) == (1.0, 4.0)


def test_no_work_has_no_ratio():
    assert math.isnan(Share(wall=1.0).ratio)
    assert table({"draft": {"rollout": Share(wall=1.0)}}).splitlines()[1].split()[-1] == "-"


@pytest.mark.parametrize("name", ["ddpo", "draft"])
def test_every_kind_of_work_is_measured_and_takes_at_least_its_calls(name):
    small = {"epochs": 2, "samples": 4, "samples_per_prompt": 2, "micro_batch": 4, "sample_batch": 4}
    shares = measure(Recipe(name, "rehearsal", training=small), epochs=1)
    assert all(share.wall >= share.inside for share in shares.values())
    assert shares["update"].inside > 0 and (shares["rollout"].inside > 0) == (name == "ddpo")
