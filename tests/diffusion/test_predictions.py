import pytest
import torch

from surveylib.diffusion.predictions import KINDS, Prediction, from_x0_epsilon, kind_of_scheduler
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule

SCHEDULES = {
    "vp": (VPSchedule.linear(), torch.tensor([3.0, 500.0, 990.0])),
    "flow": (FlowSchedule(), torch.tensor([0.02, 0.5, 0.97])),
}


def case(family, shape=(3, 4, 5, 5)):
    schedule, t = SCHEDULES[family]
    x0, epsilon = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    return schedule, t, x0, epsilon, schedule.add_noise(x0, epsilon, t)


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 2), (3, 1)])
@pytest.mark.parametrize("family", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_back_every_other(kind, family, shape):
    schedule, t, x0, epsilon, x = case(family, shape)
    a, s = (c.reshape(-1, *[1] * (len(shape) - 1)) for c in schedule.coefficients(t))
    prediction = Prediction(x, t, from_x0_epsilon(x0, epsilon, kind, a, s), kind, schedule)
    torch.testing.assert_close(prediction.x0, x0)
    torch.testing.assert_close(prediction.epsilon, epsilon)
    torch.testing.assert_close(prediction.velocity, epsilon - x0)
    torch.testing.assert_close(prediction.v, a * epsilon - s * x0)
    torch.testing.assert_close(prediction.score, -epsilon / s)
    for other in KINDS:
        back = Prediction(x, t, prediction.in_kind(other), other, schedule)
        torch.testing.assert_close(back.in_kind(kind), prediction.output)


def test_v_prediction_at_zero_terminal_snr_and_velocity_at_both_ends():
    schedule = VPSchedule([0.9, 0.5, 0.0])
    x0, epsilon = torch.randn(2, 3), torch.randn(2, 3)
    end = Prediction(epsilon, 2, -x0, "v", schedule)  # a = 0, s = 1: v = -x0
    torch.testing.assert_close(end.x0, x0)
    flow = FlowSchedule()
    for sigma, x in ((0.0, x0), (1.0, epsilon)):
        prediction = Prediction(x, sigma, epsilon - x0, "velocity", flow)
        torch.testing.assert_close(prediction.x0, x0)
        torch.testing.assert_close(prediction.epsilon, epsilon)


def test_x0_and_epsilon_recombine_to_x():
    schedule, t, _, _, x = case("vp")
    prediction = Prediction(x, t, torch.randn_like(x), "v", schedule)
    torch.testing.assert_close(prediction.a * prediction.x0 + prediction.s * prediction.epsilon, x)


def test_replacing_x0_or_epsilon_moves_the_other():
    schedule, t, _, _, x = case("flow")
    prediction = Prediction(x, t, torch.randn_like(x), "velocity", schedule)
    moved = prediction.with_x0(prediction.x0 + 1)
    torch.testing.assert_close(moved.epsilon, prediction.epsilon - prediction.a / prediction.s)
    torch.testing.assert_close(prediction.with_epsilon(moved.epsilon).x0, moved.x0)


def test_half_precision_is_raised_and_gradient_flows():
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    output = torch.randn(2, 3, dtype=torch.bfloat16, requires_grad=True)
    prediction = Prediction(x, 300, output, "epsilon", VPSchedule.linear())
    assert prediction.x0.dtype == torch.float32
    prediction.x0.sum().backward()
    assert output.grad.abs().min() > 0
    assert not prediction.detach().x0.requires_grad


def test_indexing_takes_the_times_along():
    schedule, t, x0, epsilon, x = case("vp")
    prediction = Prediction(x, t, epsilon, "epsilon", schedule)
    torch.testing.assert_close(prediction[torch.tensor([2, 0])].x0, x0[[2, 0]])
    torch.testing.assert_close(prediction[:1].x0, x0[:1])


def test_kind_of_a_scheduler():
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    assert kind_of_scheduler(DDIMScheduler(prediction_type="v_prediction")) == "v"
    assert kind_of_scheduler(FlowMatchEulerDiscreteScheduler()) == "velocity"


def test_bad_input_is_named():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="epsilon, x0, v, velocity, score"):
        Prediction(x, 5, x, "noise", VPSchedule.linear())
    with pytest.raises(ValueError, match="differ in shape"):
        Prediction(x, 5, torch.zeros(2, 6), "epsilon", VPSchedule.linear())
