"""Reward gradients: identities that hold exactly, against chains written out by hand."""

import pytest
import torch

from surveylib.alignment.engine import AlignmentError, align
from surveylib.diffusion.dynamics import DDIM, FlowSDE
from surveylib.diffusion.rollout import rollout, sample
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.rewards.points import PointReward
from surveylib.runs.randomness import normal
from surveylib.techniques.contract import Draw, Training
from surveylib.techniques.paths import sample_paths
from surveylib.techniques.reward_gradient.adjoint_matching import AdjointMatching, AdjointMatchingConfig, lean_adjoint
from surveylib.techniques.reward_gradient.draft import DRaFT, DRaFTConfig, differentiable_sample, low_variance_samples
from surveylib.techniques.reward_gradient.refl import ReFL, ReFLConfig
from surveylib.worlds.gaussian.mixture import ANY, GaussianMixture
from surveylib.worlds.gaussian.models import ExactModel, ExactNetwork, GaussianModel, GaussianNet
from surveylib.worlds.gaussian.tilt import QuadraticReward

pytestmark = pytest.mark.truth
REWARD = PointReward(QuadraticReward((1.0, -1.0)))
REWARD_1D = PointReward(QuadraticReward((1.0,)))
MEAN, VARIANCE = 0.3, 0.8
SCHEDULES = pytest.mark.parametrize(
    "schedule", [VPSchedule.cosine(), FlowSchedule(spacing="uniform")], ids=["vp", "flow"]
)


def policy(spacing: str = "leading") -> GaussianModel:
    """A small random network over points in two dimensions. On a trailing grid the last noise level is a high one."""
    torch.manual_seed(0)
    schedule = VPSchedule.cosine(spacing=spacing)
    network = GaussianNet(2, 1, schedule, "epsilon", width=16, depth=1)
    torch.nn.init.normal_(network.out.weight, std=0.3)
    return GaussianModel(network, ["a"], 2, schedule)


def items_of(technique, model, seed: int = 0):
    return technique.collect(model, Draw.of([ANY] * 16, seed=seed), REWARD).all_items(seed)


def flat_gradient(model, loss) -> torch.Tensor:
    grads = torch.autograd.grad(loss.mean(), list(model.network.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in grads if g is not None])


def technique_gradient(technique, model, seed: int = 0) -> torch.Tensor:
    return flat_gradient(model, technique.loss(model, items_of(technique, model, seed), REWARD, {})[0])


def state_after(model, items, steps: int, done: int) -> torch.Tensor:
    """x after `done` of `steps` deterministic steps, no graph."""
    x = normal(items.keys, model.latent_shape, "start")
    times = model.schedule.grid(steps)
    with torch.no_grad():
        for k in range(done):
            x = DDIM(0.0).transition(model.predict(x, times[k], items.condition, 1.0), times[k + 1]).mean
    return x


# -- DRaFT and ReFL
def test_draft_1_is_the_gradient_through_the_last_step():
    model, technique = policy(), DRaFT(DRaFTConfig(variant="k", last=1, steps=5, guidance=1.0))
    items, times = items_of(technique, model), model.schedule.grid(5)
    x = state_after(model, items, 5, 4)
    x0 = DDIM(0.0).transition(model.predict(x, times[4], items.condition, 1.0), times[5]).mean
    expected = flat_gradient(model, -REWARD(x0, [ANY] * 16))
    assert torch.allclose(technique_gradient(technique, model), expected, atol=1e-6)


@pytest.mark.parametrize("family", ["vp", "flow"])
def test_a_low_variance_sample_is_one_ddim_step_from_a_x0_plus_s_eps(family):
    """By hand: x_1 = a_1 x_0 + s_1 eps_i, then a_0 x0hat + s_0 epshat of the network at (x_1, t_1)."""
    model = policy("trailing")
    if family == "flow":
        model = GaussianModel(GaussianNet(2, 1, FlowSchedule(spacing="uniform"), "velocity", 16, 1), ["a"], 2,
                              FlowSchedule(spacing="uniform"))
        torch.nn.init.normal_(model.network.out.weight, std=0.3)
    condition, config = model.encode([ANY] * 4), DRaFTConfig(variant="lv", renoisings=3, steps=5, guidance=1.0)
    x0 = torch.randn(4, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    noises = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(2))
    found = low_variance_samples(model, condition, x0, noises, config)
    t1, t0 = model.schedule.grid(5)[-2:]
    (a1, s1), (a0, s0) = (tuple(map(float, model.schedule.coefficients(t))) for t in (t1, t0))
    assert s1 > 0.15  # noise enough to tell
    for i, noise in enumerate(noises):
        x1 = a1 * x0.detach() + s1 * noise
        output = model.network(x1, t1.expand(4), condition.tensors["components"])
        if family == "vp":
            clean, dirt = (x1 - s1 * output) / a1, output
        else:
            clean, dirt = x1 - s1 * output, x1 + (1 - s1) * output
        assert torch.allclose(found[4 * i : 4 * i + 4], a0 * clean + s0 * dirt, atol=1e-5)
    assert torch.autograd.grad(found.sum(), x0, allow_unused=True, retain_graph=True) == (None,)  # sg(x_0)
    assert flat_gradient(model, found).norm() > 0


class Nudged(torch.nn.Module):
    """The exact velocity of N(MEAN, VARIANCE) + shift + slope x, both 0: its predictions are exact, its weights have
    gradients. Every one of n samples has weights of its own, so that the gradient comes sample by sample."""

    def __init__(self, n: int, schedule) -> None:
        super().__init__()
        self.exact = ExactNetwork(GaussianMixture([[MEAN]], [[[VARIANCE]]], [1.0]), schedule, "velocity")
        self.shift, self.slope = (torch.nn.Parameter(torch.zeros(n, 1)) for _ in range(2))

    def forward(self, x, t, components):
        again = len(x) // len(self.shift)  # noise by noise
        return self.exact(x, t, components) + self.shift.repeat(again, 1) + self.slope.repeat(again, 1) * x


def test_low_variance_draft_is_unbiased_where_x0_is_a_sample_of_the_data():
    """Exact scores and fine chains: x_0 is then distributed as the data, x_1 as the data at t_1, and re-noising the
    first gives the second. The mean gradients of DRaFT-1 and DRaFT-LV then differ by less than three standard errors
    of their difference; with no noise, or twice the noise, by more than six.

    The last step is a long one, from sigma = 0.4, so that the noise level matters. The chains have their own noises.
    """
    n, steps = 4000, 200
    config = DRaFTConfig(variant="lv", renoisings=2, steps=steps, guidance=1.0)
    model = GaussianModel(None, ["a"], 1, FlowSchedule(spacing="uniform"), "velocity")

    def start(seed: int) -> torch.Tensor:
        return torch.randn(n, 1, generator=torch.Generator().manual_seed(seed))

    def gradients(samples: torch.Tensor) -> torch.Tensor:
        """Of the mean reward of each sample by its (shift, slope), (n, 2)."""
        total = REWARD_1D(samples, [ANY] * len(samples)).sum() / (len(samples) // n)
        return torch.cat(torch.autograd.grad(total, [model.network.shift, model.network.slope]), 1)

    model.network = Nudged(n, model.schedule)
    condition = model.encode([ANY] * n)
    x0 = sample(model, condition, dynamics=DDIM(0.0), steps=steps, guidance=1.0, x=start(0))
    model.schedule = FlowSchedule(spacing="sigma_min", sigma_min=0.4)
    model.network = Nudged(n, model.schedule)
    one = gradients(differentiable_sample(model, condition, start(1), DRaFTConfig(last=1, steps=steps, guidance=1.0)))
    noises = torch.stack([start(2), start(3)])

    def apart(scale: float) -> float:
        """The larger difference of the two means, in standard errors; by chance beyond 3 in 1 of 200 seeds."""
        many = gradients(low_variance_samples(model, condition, x0, scale * noises, config))
        error = ((one.var(0) + many.var(0)) / n).sqrt()
        return ((one.mean(0) - many.mean(0)) / error).abs().max().item()

    assert apart(1.0) < 3 and apart(0.0) > 6 and apart(2.0) > 6


def test_low_variance_draft_agrees_for_1_2_and_8_renoisings():
    """Differences are paired by seed; in units of their standard error their mean square is 1 if only chance acts."""
    model, seeds, grads = policy("trailing"), range(60), {}
    for n in (1, 2, 8):
        technique = DRaFT(DRaFTConfig(variant="lv", renoisings=n, steps=5, guidance=1.0))
        grads[n] = torch.stack([technique_gradient(technique, model, seed) for seed in seeds])
    for n in (1, 2):
        difference = grads[n] - grads[8]
        error = difference.std(0) / len(seeds) ** 0.5
        moved = error > 1e-7
        assert (difference.mean(0)[moved] / error[moved]).square().mean() < 2.0


def test_the_variance_of_low_variance_draft_falls_as_one_over_n():
    """The variance that the re-noising adds, x_0 held fixed; the levels of the noise are those of the last step."""
    model = policy("trailing")
    config = DRaFTConfig(variant="lv", steps=5, guidance=1.0)
    condition, x0 = model.encode([ANY] * 4), torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    generator, spread = torch.Generator().manual_seed(2), {}
    for n in (1, 8):
        grads = []
        for _ in range(100):
            noises = torch.randn(n, 4, 2, generator=generator)
            samples = low_variance_samples(model, condition, x0, noises, config)
            grads.append(flat_gradient(model, -REWARD(samples, [ANY] * (4 * n))))
        spread[n] = torch.stack(grads).var(0).sum().item()
    assert spread[1] / spread[8] == pytest.approx(8, rel=0.35)


def test_the_gradient_of_refl_goes_through_one_call_at_its_step():
    model, technique = policy(), ReFL(ReFLConfig(steps=6, first=3, last=3, scale=0.1, ceiling=2.0))
    items, times = items_of(technique, model), model.schedule.grid(6)
    x = state_after(model, items, 6, 3)
    x0 = model.predict(x, times[3], items.condition, 1.0).x0
    expected = flat_gradient(model, 0.1 * (2.0 - REWARD(x0, [ANY] * 16)).relu())
    assert torch.allclose(technique_gradient(technique, model), expected, atol=1e-7)


def test_the_constants_of_refl_are_those_of_the_official_script():
    assert ReFL.PRESETS["full"].config == ReFLConfig(40, 30, 39, 1e-3, 2.0, 1.0)


@pytest.mark.parametrize("make", [
    lambda on: ReFL(ReFLConfig(steps=6, first=3, last=3, checkpoint=on)),
    lambda on: DRaFT(DRaFTConfig(variant="k", last=3, steps=5, guidance=1.0, checkpoint=on)),
    lambda on: DRaFT(DRaFTConfig(variant="lv", steps=5, guidance=1.0, checkpoint=on)),
], ids=["refl", "draft-k", "draft-lv"])
def test_checkpointing_leaves_every_gradient(make):
    model = policy()
    plain, again = (technique_gradient(make(on), model) for on in (False, True))
    assert plain.norm() > 0 and torch.allclose(plain, again, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("technique", [
    DRaFT(DRaFTConfig(variant="k", last=1, steps=3, guidance=1.0)), ReFL(ReFLConfig(steps=3, first=1, last=2)),
], ids=["draft", "refl"])
def test_a_gradient_that_is_not_finite_stops_the_run(technique):
    root = PointReward(lambda x: (x[:, 0] * 0).sqrt() + x[:, 0])  # finite values, slope infinite times 0
    training = Training(epochs=1, samples=4, lora_rank=None, micro_batch=4, sample_batch=4)
    with pytest.raises(AlignmentError, match="the gradient of epoch 1 is not finite"):
        next(align(policy(), technique, root, [ANY], training))


# -- Adjoint Matching on N(MEAN, VARIANCE), where the base chain is linear
def base_paths(schedule, dynamics, n: int = 4, steps: int = 20):
    model = ExactModel(GaussianMixture([[MEAN]], [[[VARIANCE]]], [1.0]), schedule)
    model.reference = torch.enable_grad  # the model is its own reference
    condition = model.encode([ANY] * n)
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    return model, condition, sample_paths(model, condition, dynamics=dynamics, steps=steps, generators=generators,
                                          guidance=1.0)


def memory(schedule, dynamics, steps: int) -> float:
    """d x_0 / d x_T of the linear chain with its noise held fixed."""
    model, condition, paths = base_paths(schedule, dynamics, 1, steps)
    adjoint, _ = lean_adjoint(model, condition, paths, torch.ones(1, 1), dynamics, 1.0)
    x = paths.x[:, 0].clone().requires_grad_()
    mean = dynamics.transition(model.predict(x, paths.t[0], condition, 1.0), paths.t[1]).mean
    return torch.autograd.grad(mean, x, adjoint[:, 0])[0].item()


@SCHEDULES
def test_the_lean_adjoint_of_a_gaussian_in_closed_form(schedule):
    """a_s = a_0 d E[x_0 | x_s] / d x_s = a_0 a(s) v / (a(s)^2 v + s(s)^2), at any number of steps."""
    model, condition, paths = base_paths(schedule, DDIM(1.0))
    terminal = torch.tensor([[1.0], [-2.0], [0.5], [3.0]])
    adjoint, _ = lean_adjoint(model, condition, paths, terminal, DDIM(1.0), 1.0)
    a, s = schedule.coefficients(paths.t[1:])
    slope = (a * VARIANCE / (a**2 * VARIANCE + s**2)).float()
    assert torch.allclose(adjoint[:, :, 0], terminal * slope, rtol=2e-4, atol=1e-5)


@SCHEDULES
def test_ddim_with_eta_1_has_the_memoryless_noise(schedule):
    """std^2 / d -> 2 eta_t = 2 (s s' - a'/a s^2), d the length of a small step (arXiv 2409.08861, theorem 1)."""
    model = ExactModel(GaussianMixture([[MEAN]], [[[VARIANCE]]], [1.0]), schedule)
    condition = model.encode([ANY])
    middle = {"vp": [200.0, 500.0, 800.0], "flow": [0.2, 0.5, 0.8]}[schedule.family]
    step = {"vp": 1.0, "flow": 1e-3}[schedule.family]
    for t in (torch.tensor(value, dtype=torch.float64) for value in middle):
        (a, s), (a1, s1) = schedule.coefficients(t), schedule.coefficients(t - step)
        expected = 2 * (s * (s - s1) - (a - a1) / a * s**2)
        std = DDIM(1.0).transition(model.predict(torch.zeros(1, 1), t, condition, 1.0), t - step).std
        assert std.square().item() == pytest.approx(expected.item(), rel=2e-2)


def test_only_the_memoryless_chain_forgets_its_start():
    flow, vp = FlowSchedule(spacing="uniform"), VPSchedule.cosine()
    assert abs(memory(flow, DDIM(1.0), 50)) < 1e-6
    assert abs(memory(vp, DDIM(1.0), 200)) < 1e-2  # a leading grid starts just below the noisiest time
    assert abs(memory(flow, FlowSDE(0.7), 200)) > 0.1 and abs(memory(flow, DDIM(0.0), 200)) > 0.8


@SCHEDULES
def test_the_control_of_the_lean_adjoint_shifts_the_chain_by_the_tilt(schedule):
    """With r = x, mean_pre - std^2 a moves x_0 by lambda W, W the variance that the chain's own noise gives x_0.

    W reaches the data's variance with order 1 in the steps: the rest is the sampler's error, not the control's.
    """
    scale, dynamics, errors = 0.7, DDIM(1.0), []
    for steps in (20, 80, 320):
        model, condition, paths = base_paths(schedule, dynamics, 2, steps)
        adjoint, base = lean_adjoint(model, condition, paths, torch.full((2, 1), -scale), dynamics, 1.0)
        x, variance = paths.x[:, 0], 0.0
        for k in range(steps):
            step = dynamics.transition(model.predict(x, paths.t[k], condition, 1.0), paths.t[k + 1])
            x = step.mean - step.std**2 * adjoint[:, k] + (paths.x[:, k + 1] - base[:, k])  # the same noise
            variance += (step.std * adjoint[:, k] / scale).square()
        assert torch.allclose(x - paths.x0, scale * variance, rtol=1e-3)
        errors.append(1 - variance.mean().item() / VARIANCE)
    assert errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 2.5 and errors[2] < 0.02


def test_only_reward_scale_times_reward_counts():
    def batch(scale: float, factor: float):
        model = policy()
        model.reference = torch.enable_grad
        reward = PointReward(lambda x: factor * QuadraticReward((1.0, -1.0))(x))
        config = AdjointMatchingConfig(reward_scale=scale, steps=5, guidance=1.0, trained=None)
        return AdjointMatching(config).collect(model, Draw.of([ANY] * 3), reward).steps["adjoint"]

    assert torch.allclose(batch(4.0, 0.5), batch(1.0, 2.0), rtol=1e-5)
    assert not torch.allclose(batch(4.0, 0.5), batch(2.0, 0.5), rtol=0.1)


def test_steps_without_noise_are_not_trained_but_carry_the_adjoint():
    model, condition, paths = base_paths(VPSchedule.cosine(), DDIM(1.0))
    assert not paths.stochastic[-1] and paths.stochastic[:-1].all()
    steps = AdjointMatching(AdjointMatchingConfig(trained=None)).trained_steps(paths.stochastic, Draw.of([ANY]))
    assert steps.tolist() == list(range(19))
    adjoint, _ = lean_adjoint(model, condition, paths, torch.ones(4, 1), DDIM(1.0), 1.0)
    assert torch.equal(adjoint[:, -1], torch.ones(4, 1)) and not torch.allclose(adjoint[:, -2], adjoint[:, -1])


def test_a_rollout_with_gradient_equals_one_without():
    """The sample that DRaFT differentiates is the sample that the sampler makes."""
    model, technique = policy(), DRaFT(DRaFTConfig(variant="full", steps=5, guidance=1.0))
    items = items_of(technique, model)
    x = normal(items.keys, model.latent_shape, "start")
    *_, last = rollout(model, items.condition, dynamics=DDIM(0.0), steps=5, guidance=1.0, x=x)
    rewards = technique.loss(model, items, REWARD, {})[1]["reward"]
    assert torch.allclose(rewards, REWARD(last.x_next, [ANY] * 16), atol=1e-6)
