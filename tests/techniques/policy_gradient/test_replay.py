"""Stored steps: which states of a path they are, and that long stretches are not copied."""

import torch

from surveylib.techniques.paths import Paths
from surveylib.techniques.policy_gradient.replay import stored_steps


def path(stochastic: list[bool]) -> Paths:
    """Three rollouts whose steps have noise where `stochastic` says so."""
    n = len(stochastic)
    x = torch.randn(3, n + 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return Paths(x, torch.linspace(1, 0, n + 1, dtype=torch.float64), torch.randn(3, n), torch.tensor(stochastic))


def shares(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def test_steps_that_follow_one_another_are_views_of_the_path():
    for stochastic, first in (([True] * 5 + [False], 0), ([False] + [True] * 4 + [False], 1)):
        paths, count = path(stochastic), sum(stochastic)
        steps, k = stored_steps(paths)
        assert k.tolist() == list(range(first, first + count))
        for name, begin in (("x", first), ("x_next", first + 1)):
            assert shares(steps[name], paths.x) and steps[name].data_ptr() == paths.x[:, begin].data_ptr()
            assert torch.equal(steps[name], paths.x[:, begin : begin + count])


def test_few_steps_and_scattered_ones_are_copies_and_let_the_path_go():
    for stochastic in ([False, True, True] + [False] * 5, [True, True, False, True, True, False]):
        paths = path(stochastic)
        steps, k = stored_steps(paths)
        assert k.tolist() == [i for i, noisy in enumerate(stochastic) if noisy]
        for name, behind in (("x", 0), ("x_next", 1)):
            assert not shares(steps[name], paths.x)
            assert torch.equal(steps[name], torch.stack([paths.x[:, i + behind] for i in k.tolist()], 1))
