"""The four adapters: the same latents in, the same picture out as the pipeline's own call; gradients; the border."""

import itertools
import logging

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.pipelines import ADAPTERS, from_pipeline
from surveylib.diffusion.rollout import rollout
from surveylib.diffusion.schedules import broadcast
from surveylib.diffusion.tiny import RESOLUTION, TINY, tiny_pipeline, tiny_sd
from surveylib.diffusion.zoo import load_model

PROMPTS = ["a red circle", "a blue square left of a green triangle"]
NAMES = ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"]


def adapter(name, **settings):
    settings.setdefault("resolution", RESOLUTION)
    if name.startswith(("tiny-sd3", "tiny-flux")):
        settings.setdefault("max_sequence_length", 12)
    return from_pipeline(tiny_pipeline(name), name=name, **settings)


def ode_sample(model, x, condition, steps, guidance=None):
    """x <- a' x0 + s' eps along the model's grid: DDIM for VP, Euler for flow matching."""
    grid = model.schedule.grid(steps)
    for t, t_next in itertools.pairwise(grid):
        prediction = model.predict(x, t, condition, guidance)
        a, s = (broadcast(c, x) for c in model.schedule.coefficients(t_next))
        x = (a * prediction.x0 + s * prediction.epsilon).float()
    return x


def pipeline_pictures(model, noise, steps, **call):
    """The pipeline's own call on the same latents: pictures (B, 3, H, W) in [0, 1]."""
    latents = noise.clone()
    if type(model).__name__ == "Flux":
        latents = model.pipeline._pack_latents(latents, *latents.shape)
    if hasattr(model, "max_sequence_length"):
        call.setdefault("max_sequence_length", model.max_sequence_length)
    height, width = model.resolution
    call = {"prompt": PROMPTS, "height": height, "width": width, **call}
    with torch.no_grad():
        return model.pipeline(num_inference_steps=steps, latents=latents, output_type="pt", **call).images


@torch.no_grad()
def our_pictures(model, noise, steps, guidance=None, negative=""):
    condition = model.encode(PROMPTS, negative)
    return model.decode(ode_sample(model, noise, condition, steps, guidance), clamp=True)


def noise_of(model, seed=0):
    return model.initial_noise(2, torch.Generator().manual_seed(seed))


def assert_same_picture(ours, theirs):
    assert theirs.std() > 0.05, "a blank picture would prove nothing"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.truth
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl", "tiny-sd3"])
def test_picture_equals_the_pipelines_own_call(name, guidance):
    model = adapter(name)
    noise = noise_of(model)
    theirs = pipeline_pictures(model, noise, 5, guidance_scale=guidance)
    assert_same_picture(our_pictures(model, noise, 5, guidance), theirs)
    other = our_pictures(model, noise, 5, 1.0 if guidance > 1 else 4.0)
    assert (other - theirs).abs().max() > 1e-3, "guidance must matter, or equality says nothing about it"


@pytest.mark.truth
@pytest.mark.parametrize("name", ["tiny-sd", "tiny-sdxl", "tiny-sd3"])
def test_negative_prompts_are_the_pipelines_own(name):
    model = adapter(name)
    noise = noise_of(model)
    negative = ["a dog", "a moon"]
    theirs = pipeline_pictures(model, noise, 4, guidance_scale=3.0, negative_prompt=negative)
    assert_same_picture(our_pictures(model, noise, 4, 3.0, negative), theirs)
    assert (our_pictures(model, noise, 4, 3.0) - theirs).abs().max() > 1e-3


@pytest.mark.truth
@pytest.mark.parametrize("name", NAMES)
def test_pictures_that_are_not_square(name):
    model = adapter(name, resolution=(32, 64))
    assert model.latent_shape == (4, 8, 16)
    noise = noise_of(model)
    assert_same_picture(our_pictures(model, noise, 3, 2.0), pipeline_pictures(model, noise, 3, guidance_scale=2.0))


@pytest.mark.truth
@pytest.mark.parametrize("scale", [1.0, 3.5])
def test_flux_dev_takes_guidance_as_an_input_and_shifts_with_the_size(scale):
    model = adapter("tiny-flux")
    assert model.guidance_mode == "embedded"
    assert model.schedule.shift != 1 and model.schedule.spacing == "uniform"
    noise = noise_of(model)
    assert_same_picture(our_pictures(model, noise, 5, scale), pipeline_pictures(model, noise, 5, guidance_scale=scale))
    assert adapter("tiny-flux", resolution=(32, 64)).schedule.shift > model.schedule.shift


@pytest.mark.truth
def test_flux_schnell_has_no_guidance_and_takes_true_guidance_on_request():
    model = adapter("tiny-flux-schnell")
    assert (model.default_guidance, model.guidance_mode, model.schedule.shift) == (1.0, "cfg", 1.0)
    noise = noise_of(model)
    assert_same_picture(our_pictures(model, noise, 4), pipeline_pictures(model, noise, 4))
    call = {"negative_prompt": ["", ""], "true_cfg_scale": 3.0}
    assert_same_picture(our_pictures(model, noise, 4, 3.0), pipeline_pictures(model, noise, 4, **call))


@pytest.mark.truth
@pytest.mark.parametrize("name, scheduler, steps", [  # ancestral Euler has no noise in its last step
    ("tiny-sd-turbo", "EulerDiscreteScheduler", 1), ("tiny-sd-turbo", "EulerDiscreteScheduler", 4),
    ("tiny-sdxl-turbo", "EulerAncestralDiscreteScheduler", 1),
])
def test_turbo_models_trailing_grid_and_euler(name, scheduler, steps):
    model = adapter(name, default_guidance=1.0)
    assert type(model.pipeline.scheduler).__name__ == scheduler
    noise = noise_of(model)
    plain = torch.randn(noise.shape, generator=torch.Generator().manual_seed(0))
    theirs = pipeline_pictures(model, plain, steps, guidance_scale=0.0)  # the pipeline scales the latents it is given
    assert model.schedule.grid(steps)[0] == 999
    assert 0.99 < (noise / plain).mean() < 0.9999
    assert_same_picture(our_pictures(model, noise, steps), theirs)


@pytest.mark.truth
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_sd3_shift_comes_from_the_scheduler(shift):
    model = adapter("tiny-sd3")
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    model = from_pipeline(model.pipeline, max_sequence_length=12)
    noise = noise_of(model)
    assert model.schedule.shift == shift
    assert_same_picture(our_pictures(model, noise, 4, 2.0), pipeline_pictures(model, noise, 4, guidance_scale=2.0))


@pytest.mark.truth
def test_sd3_dynamic_shift_depends_on_the_tokens():
    model = adapter("tiny-sd3")
    model.pipeline.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, max_shift=1.16)
    model = from_pipeline(model.pipeline, max_sequence_length=12)
    noise = noise_of(model)
    assert_same_picture(our_pictures(model, noise, 4, 2.0), pipeline_pictures(model, noise, 4, guidance_scale=2.0))


@pytest.mark.truth
def test_t5_length_changes_the_picture_and_is_honoured():
    short, plain = adapter("tiny-sd3", max_sequence_length=8), adapter("tiny-sd3", max_sequence_length=256)
    noise = noise_of(short)
    pictures = our_pictures(short, noise, 3, 2.0)
    assert_same_picture(pictures, pipeline_pictures(short, noise, 3, guidance_scale=2.0))
    theirs = pipeline_pictures(plain, noise, 3, guidance_scale=2.0, max_sequence_length=256)
    assert_same_picture(our_pictures(plain, noise, 3, 2.0), theirs)
    assert (pictures - theirs).abs().max() > 1e-3
    assert short.encode(PROMPTS).tensors["prompt_embeds"].shape[1] == 77 + 8


@pytest.mark.truth
def test_a_short_t5_length_is_no_news_but_text_cut_for_clip_is(caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        adapter("tiny-sd3", max_sequence_length=8).encode(["a red circle on the left"])
        assert "truncated" not in caplog.text
        adapter("tiny-sd3", max_sequence_length=8).encode(["word " * 90])
        assert "CLIP can only handle" in caplog.text and "max_sequence_length" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_v_prediction_networks():
    torch.manual_seed(0)
    pipeline = tiny_sd(prediction_type="v_prediction")
    pipeline.set_progress_bar_config(disable=True)
    model = from_pipeline(pipeline)
    assert model.prediction_kind == "v"
    noise = noise_of(model)
    assert_same_picture(our_pictures(model, noise, 5, 3.0), pipeline_pictures(model, noise, 5, guidance_scale=3.0))


@pytest.mark.truth
def test_consistency_models_take_guidance_as_an_input():
    from diffusers import StableDiffusionPipeline

    from surveylib.diffusion.tiny import TEXT_WIDTH, unet

    torch.manual_seed(0)
    parts = tiny_sd().components | {"unet": unet(TEXT_WIDTH, time_cond_proj_dim=8)}
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    model = from_pipeline(pipeline)
    noise = noise_of(model)
    theirs = pipeline_pictures(model, noise, 3, guidance_scale=6.0)
    assert model.guidance_mode == "embedded"
    assert_same_picture(our_pictures(model, noise, 3, 6.0), theirs)
    assert (our_pictures(model, noise, 3, 1.0) - theirs).abs().max() > 1e-3


@pytest.mark.parametrize("name", TINY)
def test_contract(name):
    model = adapter(name)
    assert model.latent_shape == (4, 8, 8) and model.resolution == (32, 32)
    assert model.dtype == torch.float32 and model.device == torch.device("cpu")
    assert not model.network.training and not model.vae.training
    assert not any(p.requires_grad for key, part in model.pipeline.components.items() if key != model.part
                   and isinstance(part, torch.nn.Module) for p in part.parameters())
    assert model.default_guidance >= 1 and model.default_steps > 0
    t = model.schedule.grid(4)[1]
    x = noise_of(model)
    prediction = model.predict(x, t, model.encode(PROMPTS))
    for value in (prediction.x0, prediction.epsilon, prediction.velocity):
        assert value.shape == x.shape and value.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_times_of_a_batch_do_not_mix(name):
    model = adapter(name)
    condition = model.encode(PROMPTS)
    times = model.schedule.grid(4)[[1, 2]]
    x = noise_of(model)
    with torch.no_grad():
        both = model.predict(x, times, condition, 3.0).output
        for i in range(2):
            one = model.predict(x[i : i + 1], times[i], condition[i], 3.0).output
            torch.testing.assert_close(both[i : i + 1], one, atol=2e-5, rtol=1e-4)
        other = model.predict(x, times, model.encode(PROMPTS[::-1]), 3.0).output
    assert (other - both).abs().max() > 1e-3, "prompts must matter"


@pytest.mark.parametrize("name", NAMES)
def test_gradient_flows_from_the_picture_to_weights_and_latents(name):
    model = adapter(name)
    condition = model.encode(PROMPTS)
    x = noise_of(model).requires_grad_()
    prediction = model.predict(x, model.schedule.grid(4)[1], condition, 2.0)
    model.decode(prediction.x0).square().mean().backward()
    assert x.grad.abs().sum() > 0
    grads = [p.grad is not None and p.grad.abs().sum() > 0 for p in model.network.parameters()]
    assert sum(grads) / len(grads) > 0.8
    assert all(p.grad is None for p in model.vae.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_the_condition(name):
    model = adapter(name)
    condition = model.encode(PROMPTS)
    embeds = condition.tensors["prompt_embeds"].requires_grad_()
    model.predict(noise_of(model), model.schedule.grid(4)[1], condition, 2.0).x0.square().mean().backward()
    assert embeds.grad.abs().sum() > 0


@pytest.mark.truth
@pytest.mark.parametrize("name", NAMES)
def test_latents_are_scaled_and_shifted_as_the_pipeline_does(name):
    model = adapter(name)
    config = model.vae.config
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = model.vae.encode(images * 2 - 1).latent_dist.mode()
        expected = (raw - (config.shift_factor or 0)) * config.scaling_factor
        torch.testing.assert_close(model.encode_images(images), expected)
        decoded = model.vae.decode(raw).sample / 2 + 0.5
        torch.testing.assert_close(model.decode(expected), decoded, atol=1e-4, rtol=1e-4)
    assert ("sd3" in name or "flux" in name) == bool(config.shift_factor)


@pytest.mark.parametrize("name", NAMES)
def test_initial_noise_is_the_pipelines(name):
    model = adapter(name)
    ours = model.initial_noise(2, torch.Generator().manual_seed(3))
    theirs = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    if name == "tiny-flux":
        packed, _ = model.pipeline.prepare_latents(
            2, 4, 32, 32, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(3)
        )
        theirs = model.pipeline._unpack_latents(packed, 32, 32, 4)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.truth
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("scheduler", [EulerDiscreteScheduler, DPMSolverMultistepScheduler, DDIMScheduler])
def test_initial_noise_is_what_the_scheduler_gives_the_network_first(scheduler, spacing):
    pipeline = tiny_pipeline("tiny-sd")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    pipeline.scheduler = scheduler(timestep_spacing=spacing, steps_offset=1, **betas)
    ours = from_pipeline(pipeline).initial_noise(2, torch.Generator().manual_seed(3))
    pipeline.scheduler.set_timesteps(4)
    latents = pipeline.prepare_latents(
        2, 4, 32, 32, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(3))
    theirs = pipeline.scheduler.scale_model_input(latents, pipeline.scheduler.timesteps[0])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_half_precision_network_takes_and_gives_float32():
    model = adapter("tiny-sd").to(dtype=torch.bfloat16)
    prediction = model.predict(noise_of(model), 500, model.encode(PROMPTS), 2.0)
    assert prediction.output.dtype == prediction.x0.dtype == torch.float32
    assert model.decode(prediction.x0).dtype == torch.float32


def test_sdxl_autoencoder_stays_float32_beside_a_float16_network():
    model = adapter("tiny-sdxl")
    model.vae.register_to_config(force_upcast=True)
    model.to(dtype=torch.float16)
    assert (model.dtype, model.vae.dtype) == (torch.float16, torch.float32)


def test_same_text_is_embedded_once():
    model = adapter("tiny-sd")
    seen = []
    encode = model.pipeline.encode_prompt
    model.pipeline.encode_prompt = lambda texts, *rest, **more: seen.append(len(texts)) or encode(texts, *rest, **more)
    condition = model.encode([PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[0]])
    assert seen == [2, 1]  # two distinct prompts, one negative
    torch.testing.assert_close(condition.tensors["prompt_embeds"][0], condition.tensors["prompt_embeds"][3])
    assert (condition.tensors["prompt_embeds"][0] - condition.tensors["prompt_embeds"][1]).abs().max() > 0


# -- the border --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda m, c, x: m.predict(x[:, :, :4], 500, c), ValueError, "4, 8, 8"),
        (lambda m, c, x: m.predict(x[:1], 500, c), ValueError, "2 prompts"),
        (lambda m, c, x: m.predict(x.long(), 500, c), TypeError, "floating point"),
        (lambda m, c, x: m.predict(x, 5000, c).x0, ValueError, "outside"),
        (lambda m, c, x: m.predict(x.to("meta"), 500, c), ValueError, "x is on meta"),
        (lambda m, c, x: m.decode(x[:, :2]), ValueError, "4, 8, 8"),
        (lambda m, c, x: m.encode_images(torch.zeros(1, 3, 16, 16)), ValueError, "3, 32, 32"),
        (lambda m, c, x: m.encode_images(torch.full((1, 3, 32, 32), 255.0)), ValueError, "/ 255"),
        (lambda m, c, x: m.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), ValueError, "uint8"),
        (lambda m, c, x: m.encode([]), ValueError, "empty"),
        (lambda m, c, x: m.encode(["a", 3]), TypeError, "int"),
        (lambda m, c, x: m.encode(["a", "b"], negative=["c"]), ValueError, "1 negative"),
        (lambda m, c, x: m.predict(x, 500, m.encode(PROMPTS, negative=None), 3.0), ValueError, "negative"),
    ],
)
def test_what_does_not_fit_is_said_at_the_border(call, error, words):
    model = adapter("tiny-sd")
    with pytest.raises(error, match=words):
        call(model, model.encode(PROMPTS), noise_of(model))


def test_a_condition_of_another_model_is_refused():
    with pytest.raises(ValueError, match="encode the prompts with this model"):
        model = adapter("tiny-sd")
        model.predict(noise_of(model), 500, adapter("tiny-sdxl").encode(PROMPTS))


def test_settings_that_do_not_fit():
    with pytest.raises(ValueError, match="no T5"):
        adapter("tiny-sd", max_sequence_length=8)
    with pytest.raises(ValueError, match="multiples of 8"):
        adapter("tiny-flux", resolution=36)


def test_a_pipeline_without_an_adapter_lists_those_that_have_one():
    with pytest.raises(ValueError, match="StableDiffusionPipeline, StableDiffusionXLPipeline"):
        from_pipeline(type("KolorsPipeline", (), {})())
    assert set(ADAPTERS) == {type(tiny_pipeline(name)).__name__ for name in NAMES}


def test_inpainting_networks_are_refused():
    pipeline = tiny_pipeline("tiny-sd")
    pipeline.unet.register_to_config(in_channels=9)
    with pytest.raises(ValueError, match="inpainting"):
        from_pipeline(pipeline)


@pytest.mark.truth
def test_euler_scheduler_with_leading_spacing_as_published_for_sdxl():
    model = adapter("tiny-sdxl")
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    model.pipeline.scheduler = EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **betas)
    model = from_pipeline(model.pipeline)
    noise = noise_of(model)
    # Two steps: its sigmas are float32, and a network of random weights amplifies that from step to step.
    theirs = pipeline_pictures(model, noise, 2, guidance_scale=2.0)
    assert_same_picture(our_pictures(model, noise, 2, 2.0), theirs)


# -- at the border -----------------------------------------------------------------------------------------------------
def test_what_does_not_fit_is_refused_before_the_network_sees_it():
    model, other = load_model("tiny-sd"), load_model("shapes-sd")
    x, mine, theirs = model.initial_noise(1), model.encode(["a cat"]), other.encode(["a red circle"])
    with pytest.raises(ValueError, match=r"text features are 128 wide, .* takes"):
        model.predict(x, 500, theirs)
    for guidance in (float("nan"), float("inf"), torch.tensor([float("nan")])):
        with pytest.raises(ValueError, match="must be finite"):
            model.predict(x, 500, mine, guidance)
    with pytest.raises(ValueError, match=r"time \[5000\.?0?\] is outside \[-1, 999\]"):
        model.predict(x, 5000, mine)
    with pytest.raises(ValueError, match="floating point"):
        model.decode(torch.zeros(1, *model.latent_shape, dtype=torch.int64))


def test_noises_for_one_sample_are_not_shared_by_two():
    model = load_model("tiny-sd")
    noises = torch.randn(5, 1, *model.latent_shape)
    with pytest.raises(ValueError, match="give one for each sample"):
        list(rollout(model, model.encode(["a", "b"]), dynamics=DDIM(1.0), steps=5, noises=noises))


def test_dynamics_by_name_in_a_rollout():
    model = load_model("tiny-sd")
    condition, x = model.encode(["a cat"]), torch.randn(1, *model.latent_shape)
    by_name, given = (list(rollout(model, condition, dynamics=d, steps=4, x=x))[-1].x_next for d in ("ddim", DDIM()))
    assert torch.equal(by_name, given)
    with pytest.raises(ValueError, match="unknown dynamics 'foo': choose one of"):
        list(rollout(model, condition, dynamics="foo", steps=4, x=x))


def test_a_clamped_picture_keeps_its_gradient_where_it_is_saturated():
    model = load_model("tiny-sd")
    latents = (8 * torch.randn(1, *model.latent_shape)).requires_grad_()
    free, clamped = model.decode(latents), model.decode(latents, clamp=True)
    assert ((free < 0) | (free > 1)).any() and torch.equal(clamped, free.clamp(0, 1))
    weights = torch.rand_like(free)
    a, b = (torch.autograd.grad((weights * p).sum(), latents)[0] for p in (free, clamped))
    assert torch.equal(a, b)
