import itertools

import pytest
import torch
from torch import nn

from surveylib.diffusion.dynamics import CPS, DDIM, FlowSDE
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.rollout import rollout, sample, step_log_prob
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule

N = 6


class Pictures(DiffusionModel):
    """A small convolutional model of 2x4x4 latents, conditioned on the length of the prompt."""

    latent_shape = (2, 4, 4)
    prediction_kind = "v"

    def __init__(self, schedule=None):
        torch.manual_seed(0)
        self.schedule = schedule or VPSchedule.scaled_linear()
        self.network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1))
        self.calls = 0

    def encode(self, prompts, negative=""):
        lengths = torch.tensor([float(len(p)) for p in prompts])
        return Condition({"length": lengths}, prompts, {"length": torch.zeros(len(prompts))})

    def network_output(self, x, t, tensors, guidance):
        self.calls += 1
        plane = (tensors["length"] + t / self.schedule.start)[:, None, None, None].expand(-1, 1, 4, 4)
        return self.network(torch.cat([x, plane], 1))


class ByStep(DiffusionModel):
    """The output is a parameter of its own for each step: no Jacobian in x, so every gradient is known."""

    latent_shape = (1,)
    prediction_kind = "velocity"

    def __init__(self):
        self.schedule = FlowSchedule(spacing="uniform")
        self.network = nn.ParameterList([nn.Parameter(torch.tensor([0.1 * k])) for k in range(N)])

    def encode(self, prompts, negative=""):
        return Condition({"none": torch.zeros(len(prompts))}, prompts)

    def network_output(self, x, t, tensors, guidance):
        index = round(float((1 - t[0]) * N))
        return self.network[index].expand(len(x), 1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model():
    return Pictures()


def run(model, prompts=("a", "bcd"), dynamics=None, **options):
    dynamics = DDIM(1.0) if dynamics is None else dynamics
    return list(rollout(model, model.encode(list(prompts)), dynamics=dynamics, steps=N, **options))


def test_steps_follow_the_grid_and_chain(model):
    steps = run(model, generator=seeded())
    times = model.schedule.grid(N)
    assert [s.index for s in steps] == list(range(N)) and model.calls == N
    for i, step in enumerate(steps):
        assert step.t == times[i] and step.s == times[i + 1]
        assert step.x.shape == step.x_next.shape == (2, 2, 4, 4)
        if step.noise is not None:
            torch.testing.assert_close(step.x_next, step.transition.mean + step.transition.std * step.noise)
            torch.testing.assert_close(step.log_prob, step.transition.log_prob(step.x_next, "sum"))
    for before, after in itertools.pairwise(steps):
        assert torch.equal(before.x_next, after.x)
    assert steps[-1].log_prob is None and steps[0].log_prob.shape == (2,)


def test_the_generator_or_the_noises_decide_everything(model):
    steps = run(model, generator=seeded())
    again = run(model, generator=seeded())
    assert torch.equal(steps[-1].x_next, again[-1].x_next)
    given = run(model, x=steps[0].x, noises=[s.noise for s in steps])
    assert torch.equal(steps[-1].x_next, given[-1].x_next)
    assert not torch.equal(steps[-1].x_next, run(model, generator=seeded(1))[-1].x_next)


def test_a_generator_for_each_sample_makes_batches_irrelevant(model):
    both = run(model, generator=[seeded(1), seeded(2)])[-1].x_next
    second = run(model, prompts=["bcd"], generator=[seeded(2)])[-1].x_next
    torch.testing.assert_close(both[1:], second)


def test_no_gradient_and_no_leaked_grad_mode(model):
    condition = model.encode(["a"])
    for step in rollout(model, condition, dynamics=DDIM(1.0), steps=N, generator=seeded()):
        assert torch.is_grad_enabled()
        assert not step.x_next.requires_grad and not step.prediction.x0.requires_grad
    with torch.no_grad():
        for step in rollout(model, condition, dynamics=DDIM(1.0), steps=N, generator=seeded(), gradient="all"):
            assert not torch.is_grad_enabled()
            assert step.x_next.requires_grad


@pytest.mark.parametrize("chosen", [[0], [2, 4], [-1], range(3, N), "all", []])
def test_gradient_reaches_the_parameters_only_through_chosen_steps(chosen):
    model = ByStep()
    steps = run(model, prompts=["a"], dynamics=DDIM(0.0), x=torch.ones(1, 1), gradient=chosen)
    indices = set(range(N)) if chosen == "all" else {k % N for k in chosen}
    if not indices:
        assert not steps[-1].x_next.requires_grad
        return
    steps[-1].x_next.sum().backward()
    for k, parameter in enumerate(model.network):
        if k in indices:  # Euler: x' = x - p_k / N, and later steps pass it on unchanged
            assert float(parameter.grad) == pytest.approx(-1 / N, rel=1e-5)
        else:
            assert parameter.grad is None


def gradients(model, **options):
    steps = run(model, generator=seeded(), **options)
    return torch.autograd.grad(steps[-1].x_next.square().sum(), list(model.network.parameters())), steps


def test_last_step_gradient_is_that_of_the_last_step_alone(model):
    ours, steps = gradients(model, gradient={-1})
    last = steps[-1]
    prediction = model.predict(last.x.detach(), last.t, model.encode(["a", "bcd"]))
    end = DDIM(1.0).transition(prediction, last.s).sample(last.noise)
    alone = torch.autograd.grad(end.square().sum(), list(model.network.parameters()))
    torch.testing.assert_close(ours, alone)


def test_all_is_the_gradient_of_the_unrolled_chain(model):
    ours, steps = gradients(model, gradient="all")
    x, condition = steps[0].x, model.encode(["a", "bcd"])
    for step in steps:
        transition = DDIM(1.0).transition(model.predict(x, step.t, condition), step.s)
        x = transition.sample(step.noise)
    torch.testing.assert_close(ours, torch.autograd.grad(x.square().sum(), list(model.network.parameters())))


def test_checkpointing_changes_memory_not_gradients(model):
    plain, _ = gradients(model, gradient=[1, 4])
    calls = model.calls
    checkpointed, _ = gradients(model, gradient=[1, 4], checkpoint=True)
    torch.testing.assert_close(plain, checkpointed)
    assert model.calls - calls == N + 2  # the two chosen calls are run again in the backward pass


def test_detached_input_cuts_the_jacobian_of_the_network(model):
    steps = run(model, generator=seeded(), gradient=[3], detach_input=True, x=torch.randn(2, 2, 4, 4))
    with_chain, _ = gradients(model, gradient=[3, 4])
    without, _ = gradients(model, gradient=[3, 4], detach_input=True)
    assert not torch.allclose(with_chain[0], without[0])
    assert steps[-1].x_next.requires_grad
    x = torch.randn(2, 2, 4, 4, requires_grad=True)
    through = run(model, x=x, dynamics=DDIM(0.0), gradient="all", detach_input=True)[-1].x_next
    slope = torch.autograd.grad(through.sum(), x)[0]
    assert (slope - slope.flatten()[0]).abs().max() < 1e-6  # the sampler's own linear map, the same for every pixel


def test_stored_steps_replay_with_ratio_one(model):
    condition = model.encode(["a", "bcd"])
    steps = run(model, generator=seeded(), guidance=3.0)[:-1]
    for step in steps:
        replayed, _ = step_log_prob(
            model, condition, DDIM(1.0), x=step.x, t=step.t, s=step.s, x_next=step.x_next, guidance=3.0, reduction="sum"
        )
        assert torch.equal(replayed.detach(), step.log_prob)
        assert replayed.requires_grad
    mixed, transition = step_log_prob(  # each sample at a step of its own
        model,
        condition,
        DDIM(1.0),
        x=torch.stack([steps[0].x[0], steps[3].x[1]]),
        t=torch.stack([steps[0].t, steps[3].t]),
        s=torch.stack([steps[0].s, steps[3].s]),
        x_next=torch.stack([steps[0].x_next[0], steps[3].x_next[1]]),
        guidance=3.0,
        reduction="mean",
    )
    expected = torch.stack([steps[0].log_prob[0], steps[3].log_prob[1]]) / transition.mean[0].numel()
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-5)


def test_a_caller_may_send_another_sample(model):
    path = rollout(model, model.encode(["a", "bcd"]), dynamics=DDIM(0.0), steps=N, generator=seeded())
    first = next(path)
    swapped = first.x_next.flip(0)
    assert torch.equal(path.send(swapped).x, swapped)


def test_dynamics_of_each_step_and_partial_rollouts():
    model = Pictures(FlowSchedule(spacing="uniform"))
    window = [DDIM(0.0), DDIM(0.0), FlowSDE(0.7), FlowSDE(0.7), DDIM(0.0), DDIM(0.0)]
    steps = run(model, dynamics=window, generator=seeded())
    assert [s.log_prob is not None for s in steps] == [False, False, True, True, False, False]
    tail = list(
        rollout(
            model,
            model.encode(["a", "bcd"]),
            dynamics=DDIM(0.0),
            steps=model.schedule.grid(N)[4:],
            x=steps[3].x_next,
        )
    )
    assert torch.equal(tail[-1].x_next, steps[-1].x_next)


@pytest.mark.parametrize("dynamics", [CPS(0.7), FlowSDE(0.7)], ids=repr)
def test_sample_is_the_end_of_the_rollout(dynamics):
    model = Pictures(FlowSchedule())
    expected = run(model, dynamics=dynamics, generator=seeded(), guidance=2.0)[-1].x_next
    ours = sample(model, ["a", "bcd"], dynamics=dynamics, steps=N, generator=seeded(), guidance=2.0)
    assert torch.equal(ours, expected)
    by_name = sample(model, "a", dynamics="ddim", steps=N, generator=seeded())
    assert torch.equal(by_name, sample(model, model.encode(["a"]), steps=N, generator=seeded()))


def test_progress_bar_is_optional(model, capsys):
    run(model, generator=seeded())
    assert capsys.readouterr().err == ""
    run(model, generator=seeded(), progress="sampling")
    assert "sampling" in capsys.readouterr().err


def test_bad_input_is_named(model):
    condition = model.encode(["a", "bcd"])
    with pytest.raises(ValueError, match=r"\[7\] do not exist in a rollout of 6 steps"):
        run(model, gradient=[2, 7])
    with pytest.raises(ValueError, match="'none', 'all'"):
        run(model, gradient="last")
    with pytest.raises(ValueError, match="2 noises given for 6 steps"):
        run(model, noises=torch.zeros(2, 2, 2, 4, 4))
    with pytest.raises(ValueError, match="3 dynamics given for 6 steps"):
        run(model, dynamics=[DDIM(0.0)] * 3)
    with pytest.raises(ValueError, match="numbers that fall"):
        next(rollout(model, condition, dynamics=DDIM(0.0), steps=[0.0, 500.0]))
    with pytest.raises(ValueError, match=r"takes \(batch, 2, 4, 4\)"):
        run(model, x=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="not both"):
        sample(model, condition, dynamics=DDIM(0.0), solver="heun")
    with pytest.raises(ValueError, match="unknown dynamics"):
        sample(model, condition, dynamics="sde")
