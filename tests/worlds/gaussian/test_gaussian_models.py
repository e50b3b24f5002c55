import copy

import pytest
import torch

from surveylib.diffusion.dynamics import DDIM, DDPM, DanceSDE
from surveylib.diffusion.rollout import rollout, sample
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.diffusion.timesteps import stratified
from surveylib.worlds.gaussian.distances import mmd_test
from surveylib.worlds.gaussian.mixture import cross, ring, two_peaks
from surveylib.worlds.gaussian.models import ExactModel, GaussianModel, GaussianNet, learned_model, training

SCHEDULES = [VPSchedule.linear(), FlowSchedule(spacing="uniform")]
FAMILIES = ["vp", "flow"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dynamics", [DDIM(0.0), DDPM(), DanceSDE(1.0)], ids=repr)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=FAMILIES)
@pytest.mark.parametrize(
    "mixture, prompt", [(two_peaks(), "any"), (ring(), "any"), (cross(), "rising")], ids=["peaks", "ring", "rising"]
)
def test_exact_model_samples_the_mixture(mixture, prompt, schedule, dynamics):
    model = ExactModel(mixture, schedule)
    x = sample(model, [prompt] * 400, dynamics=dynamics, steps=60, generator=seeded(1))
    test = mmd_test(x, mixture.restrict(prompt).sample(400, seeded(2)), generator=seeded(3))
    assert test.p_value > 0.01
    wrong = mixture.restrict(mixture.names[-1]).sample(400, seeded(2))
    assert mmd_test(x, wrong, generator=seeded(3)).p_value < 0.01


@pytest.mark.parametrize("schedule", SCHEDULES, ids=FAMILIES)
def test_exact_predictions_are_the_posterior_in_every_kind(schedule):
    mixture = cross()
    t = torch.tensor([0.1, 0.5, 0.95]) * schedule.start
    x = torch.randn(3, 2, dtype=torch.float64)
    a, s = schedule.coefficients(t)
    for kind in ("epsilon", "x0", "v", "velocity"):
        model = ExactModel(mixture, schedule, kind)
        prediction = model.predict(x, t, model.encode(["rising", "any", "falling"]))
        for i, prompt in enumerate(["rising", "any", "falling"]):
            exact = mixture.restrict(prompt).posterior_mean(x[i : i + 1], float(a[i]), float(s[i]))
            torch.testing.assert_close(prediction.x0[i : i + 1], exact, rtol=1e-5, atol=1e-5)
            score = mixture.restrict(prompt).score(x[i : i + 1], float(a[i]), float(s[i]))
            torch.testing.assert_close(prediction.score[i : i + 1], score, rtol=1e-4, atol=1e-4)


def test_the_empty_prompt_is_the_unconditional_model():
    model = ExactModel(two_peaks())
    condition = model.encode(["left", "right"])
    assert condition.tensors["components"].tolist() == [[1, 0], [0, 1]]
    assert condition.negative["components"].tolist() == [[1, 1], [1, 1]]
    assert model.encode(["left"], negative="right").negative["components"].tolist() == [[0, 1]]
    x = torch.randn(2, 1)
    unguided = model.predict(x, 300, condition, guidance=0.0)
    torch.testing.assert_close(unguided.output, model.predict(x, 300, model.encode(["any", ""])).output)


def test_guidance_pushes_to_the_named_peak_and_beyond():
    model = ExactModel(two_peaks())
    means = []
    for guidance in (0.0, 1.0, 4.0):
        x = sample(model, ["left"] * 300, steps=30, guidance=guidance, generator=seeded())
        means.append(float(x.mean()))
    assert means[0] == pytest.approx(-0.2, abs=0.15)
    assert means[1] == pytest.approx(-1.0, abs=0.1)
    assert means[2] < means[1] - 0.1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=FAMILIES)
def test_an_untrained_network_is_the_exact_model_of_a_standard_normal(schedule):
    from surveylib.worlds.gaussian.mixture import spread

    exact = ExactModel(spread(), schedule)
    network = GaussianNet(1, 1, schedule, exact.prediction_kind)
    model = GaussianModel(network, ["centre"], 1, schedule)
    x, t = torch.randn(5, 1), torch.linspace(0.1, 0.9, 5) * schedule.start
    condition = exact.encode(["any"] * 5)
    ours, theirs = model.predict(x, t, condition).x0, exact.predict(x, t, condition).x0
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def prediction_error(model, mixture):
    """Mean squared distance of the predictions from the exact ones, over noise levels and prompts."""
    schedule, exact = model.schedule, ExactModel(mixture, model.schedule)
    x0, k = mixture.sample_labelled(2000, seeded(9))
    t = stratified(2000, schedule, generator=seeded(8))
    x = schedule.add_noise(x0, torch.randn(x0.shape, generator=seeded(7)), t)
    condition = model.encode([mixture.names[i] if i % 2 else "any" for i in k.tolist()])
    with torch.no_grad():
        ours, theirs = (m.predict(x, t, condition).output for m in (model, exact))
    return float((ours - theirs).square().mean())


@pytest.mark.parametrize("schedule", SCHEDULES, ids=FAMILIES)
def test_the_network_learns_the_mixture_quickly(schedule):
    """A quick version: 400 steps. `learned_model` takes 2000."""
    mixture = two_peaks()
    model = learned_model(mixture, schedule, steps=400, seed=0)
    untrained = learned_model(mixture, schedule, steps=0)
    assert prediction_error(model, mixture) < 0.1 * prediction_error(untrained, mixture)
    left = sample(model, ["left"] * 200, steps=20, generator=seeded())
    assert float((left < 0).float().mean()) > 0.95


def test_training_is_a_function_of_its_seed_and_yields_losses():
    def losses(seed):
        torch.manual_seed(0)
        network = GaussianNet(1, 2, SCHEDULES[0], "epsilon")
        model = GaussianModel(network, two_peaks().names, 1, SCHEDULES[0])
        return [loss for _, loss in training(model, two_peaks(), steps=5, seed=seed)]

    assert losses(1) == losses(1) != losses(2)
    state = torch.random.get_rng_state()
    learned_model(two_peaks(), steps=1)
    assert torch.equal(state, torch.random.get_rng_state())


def test_every_part_of_the_contract_answers():
    model = learned_model(ring(), steps=1)
    assert model.latent_shape == (2,) and model.device.type == "cpu" and model.dtype == torch.float32
    x = model.initial_noise(4, seeded())
    assert torch.equal(model.decode(x), x) and torch.equal(model.encode_images(x), x)
    steps = list(rollout(model, model.encode(["east"] * 4), dynamics=DDIM(1.0), steps=3, x=x, gradient={-1}))
    steps[-1].x_next.sum().backward()
    assert model.network.out.weight.grad is not None
    frozen = copy.deepcopy(model)
    assert frozen.network is not model.network


def test_bad_input_is_named():
    model = ExactModel(two_peaks())
    with pytest.raises(ValueError, match="left, right and 'any'"):
        model.encode(["up"])
    with pytest.raises(ValueError, match="give one, or one for each"):
        model.encode(["left", "right"], negative=["any"] * 3)
    with pytest.raises(ValueError, match="unknown prediction kind"):
        ExactModel(two_peaks(), kind="noise")
