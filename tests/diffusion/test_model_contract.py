import pytest
import torch
from torch import nn

from surveylib.diffusion.guidance import combine
from surveylib.diffusion.model import Condition, DiffusionModel
from surveylib.diffusion.schedules import FlowSchedule, VPSchedule


class Toy(DiffusionModel):
    """A conditioned 1x1 convolution; the condition is one number a prompt (its length)."""

    latent_shape = (4, 3, 3)

    def __init__(self, schedule=None, mode="cfg"):
        self.schedule = VPSchedule.linear() if schedule is None else schedule
        self.network = nn.Conv2d(4, 4, 1)
        self.guidance_mode = mode
        self.calls = []

    def encode(self, prompts, negative=""):
        negative = [negative] * len(prompts) if isinstance(negative, str) else negative
        numbers = [torch.tensor([[float(len(p))] for p in texts]) for texts in (prompts, negative)]
        return Condition({"length": numbers[0]}, prompts, {"length": numbers[1]})

    def network_output(self, x, t, tensors, guidance):
        self.calls.append((len(x), guidance))
        return self.network(x) * (1 + tensors["length"])[..., None, None] + (t / 1000)[:, None, None, None]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def x():
    return torch.randn(2, 4, 3, 3)


def outputs(model, x, t, prompts):
    return model.predict(x, t, model.encode(prompts), guidance=1.0).output


def test_guidance_one_is_the_conditional_model_at_half_the_cost(model, x):
    condition = model.encode(["a", "abc"])
    prediction = model.predict(x, 500, condition, guidance=1.0)
    assert [size for size, _ in model.calls] == [2]
    manual = model.network_output(x, torch.full((2,), 500.0), condition.tensors, None)
    torch.testing.assert_close(prediction.output, manual)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 7.5])
def test_one_batched_call_equals_two_calls(model, x, scale):
    conditional, unconditional = outputs(model, x, 500, ["a", "abc"]), outputs(model, x, 500, ["", ""])
    model.calls.clear()
    guided = model.predict(x, 500, model.encode(["a", "abc"]), guidance=scale)
    assert [size for size, _ in model.calls] == [4]
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided.output, expected, rtol=1e-5, atol=1e-5)


def test_guiding_epsilon_is_guiding_x0(model, x):
    conditional = model.predict(x, 500, model.encode(["a", "abc"]), 1.0)
    unconditional = model.predict(x, 500, model.encode(["", ""]), 1.0)
    guided = model.predict(x, 500, model.encode(["a", "abc"]), 4.0)
    torch.testing.assert_close(guided.x0, combine(conditional.x0, unconditional.x0, 4.0), rtol=1e-3, atol=1e-3)


def test_guidance_of_each_sample_and_a_negative_prompt(model, x):
    condition = model.encode(["a", "abc"], negative="bad")
    both = model.predict(x, 500, condition, guidance=torch.tensor([2.0, 5.0]))
    for i, scale in enumerate((2.0, 5.0)):
        alone = model.predict(x[i : i + 1], 500, condition[i], guidance=scale)
        torch.testing.assert_close(both.output[i : i + 1], alone.output)
    without = model.predict(x, 500, model.encode(["a", "abc"]), guidance=torch.tensor([2.0, 5.0]))
    assert not torch.allclose(both.output, without.output)


def test_default_guidance_is_used_and_the_unconditional_gradient_can_be_cut(model, x):
    model.default_guidance = 3.0
    condition = model.encode(["a", "abc"])
    torch.testing.assert_close(model.predict(x, 9, condition).output, model.predict(x, 9, condition, 3.0).output)
    weight = model.network.weight
    cut = torch.autograd.grad(model.predict(x, 9, condition, unconditional_gradient=False).output.sum(), weight)[0]
    conditional = torch.autograd.grad(model.predict(x, 9, condition, 1.0).output.sum(), weight)[0]
    torch.testing.assert_close(cut, 3 * conditional)


def test_guidance_distilled_models_get_the_scale_as_input(x):
    model = Toy(FlowSchedule(), mode="embedded")
    model.predict(x, 0.5, model.encode(["a", "b"]), guidance=3.5)
    size, guidance = model.calls[-1]
    assert size == 2 and guidance.tolist() == [3.5, 3.5] and guidance.dtype == torch.float32


def test_times_of_each_sample(model, x):
    condition = model.encode(["a", "abc"])
    both = model.predict(x, torch.tensor([10.0, 900.0]), condition, 2.0)
    alone = model.predict(x[1:], 900.0, condition[1], 2.0)
    torch.testing.assert_close(both.output[1:], alone.output)
    torch.testing.assert_close(both.x0[1:], alone.x0)


def test_bad_calls_are_named(model, x):
    condition = model.encode(["a", "abc"])
    with pytest.raises(ValueError, match=r"takes \(batch, 4, 3, 3\)"):
        model.predict(torch.zeros(2, 4, 5, 5), 5, condition)
    with pytest.raises(ValueError, match="repeat_interleave"):
        model.predict(torch.zeros(3, 4, 3, 3), 5, condition)
    with pytest.raises(TypeError, match="floating point"):
        model.predict(torch.zeros(2, 4, 3, 3, dtype=torch.long), 5, condition)
    with pytest.raises(ValueError, match="do not fit 2 samples"):
        model.predict(x, torch.zeros(3), condition)
    with pytest.raises(ValueError, match="negative=''"):
        model.predict(x, 5, Condition(condition.tensors, condition.prompts), guidance=2.0)


def test_initial_noise_follows_the_generator_of_each_sample(model):
    def generators(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    both, one = model.initial_noise(2, generators(1, 2)), model.initial_noise(1, generators(2))
    assert both.shape == (2, 4, 3, 3) and both.dtype == torch.float32
    assert torch.equal(both[1:], one)


def test_condition_is_cut_joined_and_repeated(model):
    condition = model.encode(["a", "bb", "ccc"], negative=["", "n", "nn"])
    assert len(condition) == 3 and condition[1].prompts == ["bb"] and condition[-1].prompts == ["ccc"]
    assert condition[torch.tensor([2, 0])].tensors["length"].flatten().tolist() == [3, 1]
    assert condition[torch.tensor([False, True, True])].prompts == ["bb", "ccc"]
    assert condition[[0, 0]].negative["length"].flatten().tolist() == [0, 0]
    assert condition.repeat_interleave(2).prompts == ["a", "a", "bb", "bb", "ccc", "ccc"]
    assert condition.repeat_interleave(2).negative["length"].flatten().tolist() == [0, 0, 1, 1, 2, 2]
    joined = Condition.cat([condition[:1], condition[1:]])
    assert joined.prompts == condition.prompts
    assert torch.equal(joined.negative["length"], condition.negative["length"])
    assert condition.to(dtype=torch.float64).tensors["length"].dtype == torch.float64


def test_bad_conditions_are_named(model):
    condition = model.encode(["a", "bb"])
    with pytest.raises(ValueError, match="batch 2 for 1 prompts"):
        Condition(condition.tensors, ["a"])
    with pytest.raises(ValueError, match="differ in name"):
        Condition(condition.tensors, condition.prompts, {"other": torch.zeros(2)})
    with pytest.raises(IndexError, match="outside"):
        condition[5]
    with pytest.raises(ValueError, match="some without"):
        Condition.cat([condition, Condition(condition.tensors, condition.prompts)])
    with pytest.raises(ValueError, match="at least one"):
        Condition.cat([])
