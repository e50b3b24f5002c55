import pytest
import torch

from surveylib.diffusion.denoising import denoising_error
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule
from surveylib.worlds.gaussian.mixture import two_peaks
from surveylib.worlds.gaussian.models import ExactModel


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return two_peaks().sample(8, generator), torch.randn(8, 1, generator=generator)


def test_it_is_the_mean_squared_error_of_the_models_own_kind(batch):
    x0, noise = batch
    model = ExactModel(two_peaks())
    t = torch.arange(8) * 100 + 50
    condition = model.encode(["any"] * 8)
    error = denoising_error(model, x0, condition, t, noise)
    prediction = model.predict(model.schedule.add_noise(x0, noise, t), t, condition)
    torch.testing.assert_close(error, (prediction.epsilon - noise).square().mean(1))
    assert error.shape == (8,)


def test_errors_in_x0_and_velocity_are_rescaled_epsilon_errors(batch):
    """On a straight line x0 - x0' = -(s/a) (eps - eps'), and the velocity's error is (1 + s/a) times that of eps."""
    x0, noise = batch
    for schedule, t in ((FlowSchedule(), 0.4), (VPSchedule.linear(), 400.0)):
        model = ExactModel(two_peaks(), schedule)
        condition = model.encode(["any"] * 8)
        a, s = (float(c) for c in schedule.coefficients(t))
        errors = {k: denoising_error(model, x0, condition, t, noise, kind=k) for k in ("epsilon", "x0", "velocity")}
        torch.testing.assert_close(errors["x0"], errors["epsilon"] * (s / a) ** 2, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(errors["velocity"], errors["epsilon"] * (1 + s / a) ** 2, rtol=1e-3, atol=1e-5)


def test_the_exact_model_has_the_least_error():
    generator = torch.Generator().manual_seed(0)
    x0, noise = two_peaks().sample(4000, generator), torch.randn(4000, 1, generator=generator)
    exact, shifted = ExactModel(two_peaks()), ExactModel(two_peaks().restrict("left"))
    errors = [denoising_error(m, x0, m.encode(["any"] * 4000), 300, noise).mean() for m in (exact, shifted)]
    assert errors[0] < errors[1]


def test_bad_input_is_named(batch):
    model = ExactModel(two_peaks())
    with pytest.raises(ValueError, match="epsilon, x0"):
        denoising_error(model, *batch[:1], model.encode(["any"] * 8), 300, batch[1], kind="noise")
    with pytest.raises(ValueError, match="same shape"):
        denoising_error(model, batch[0], model.encode(["any"] * 8), 300, batch[1][:4])
