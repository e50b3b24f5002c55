"""Pre-training: resumable to the bit, and the parts whose mathematics can be checked."""

import argparse
import copy
import dataclasses
import inspect
import math
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPModel, CLIPProcessor, CLIPTextModel

from surveylib.diffusion.zoo import CHECKPOINTS
from surveylib.worlds.shapes.data import stream
from surveylib.worlds.shapes.pretrain import autoencoder, clip, decoder, sd, sd3
from surveylib.worlds.shapes.pretrain.attributes import (
    CLASSES,
    OF_SAID,
    PATCHES,
    BindingHead,
    CaptionHeads,
    attribute_targets,
    centres,
    said_labels,
)
from surveylib.worlds.shapes.pretrain.latents import load_autoencoder, oversample, rows
from surveylib.worlds.shapes.pretrain.loop import LoopConfig, deciding, learning_rate, train
from surveylib.worlds.shapes.pretrain.pool import Pool, make_labelled_pool, make_pool
from surveylib.worlds.shapes.pretrain.teacher import VelocityTeacher, mixed_target
from surveylib.worlds.shapes.pretrain.text import LENGTH, build_tokenizer, text_config, token_ids
from surveylib.worlds.shapes.prompts import RELATIONS, VOCABULARY, parse
from surveylib.worlds.shapes.scenes import SHAPES

CONFIG = LoopConfig(steps=8, batch=4, lr=0.05, warmup=2, ema=0.9, every=3)


@pytest.fixture(scope="module")
def examples():
    return next(stream(1500, seed=5))


@pytest.fixture(scope="module")
def tokenizer(examples):
    return build_tokenizer(examples[1])


def run(folder, config=CONFIG, stop_after=None, options=None):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def loss(step, generator):
        x = torch.randn(config.batch, 3, generator=generator)
        return (net(x) - x.sum(1, keepdim=True)).square().mean(), {}

    for row in train(net, loss, config, folder, options):
        if row["step"] == stop_after:
            return None
    return net.state_dict()


def test_a_stopped_run_resumed_ends_in_the_same_bits(tmp_path):
    whole = run(tmp_path / "whole")
    for stop in (2, 3, 5, 7):  # before, at and after checkpoints (every 3)
        assert run(tmp_path / f"cut{stop}", stop_after=stop) is None
        again = run(tmp_path / f"cut{stop}")
        assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    run(tmp_path / "a", stop_after=4)
    with pytest.raises(ValueError, match=r"another configuration: lr is 0\.05 there and 0\.1 here"):
        run(tmp_path / "a", dataclasses.replace(CONFIG, lr=0.1))


def test_options_that_decide_the_data_are_part_of_the_configuration(tmp_path):
    options = {"latents": 80, "oversample": ["black", "2"], "init": None}
    whole = run(tmp_path / "whole", options=options)
    run(tmp_path / "a", stop_after=4, options=options)
    for name, value in (("latents", 40), ("oversample", None), ("init", "runs/before")):
        with pytest.raises(ValueError, match="another configuration") as error:
            run(tmp_path / "a", options=options | {name: value})
        assert f"{name} is {options[name]!r} there and {value!r} here" in str(error.value)
    with pytest.raises(ValueError, match="latents is 80 there and None here"):
        run(tmp_path / "a")
    again = run(tmp_path / "a", options=options)
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_a_checkpoint_from_before_the_options_were_kept_is_gone_on_with(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "a", stop_after=4)  # which keeps none
    again = run(tmp_path / "a", options={"latents": 80})
    assert all(torch.equal(whole[k], again[k]) for k in whole)


def test_where_a_script_runs_and_how_fast_is_no_part_of_the_configuration():
    args = argparse.Namespace(out=Path("runs/x"), device="cpu", bfloat16=True, compile=False, steps=5, init=Path("a/b"),
                              attributes=0.2, oversample=["black", "2"])
    assert deciding(args) == {"steps": 5, "init": "a/b", "attributes": 0.2, "oversample": ["black", "2"]}


@pytest.mark.parametrize("script", [autoencoder, clip, decoder, sd, sd3])
def test_every_script_keeps_its_options(script):
    assert "deciding(args)" in inspect.getsource(script.main)


def test_learning_rate_warms_up_and_ends_near_zero():
    config = LoopConfig(steps=100, batch=1, lr=1.0, warmup=10)
    assert learning_rate(config, 0) == 0.1 and learning_rate(config, 9) == 1.0
    assert learning_rate(config, 55) == pytest.approx(0.5)
    assert learning_rate(config, 99) < 1e-3


def test_rows_visit_every_example_once_an_epoch():
    seen = torch.cat([rows(12, 4, 0, step) for step in range(3)])
    assert sorted(seen.tolist()) == list(range(12))
    assert not torch.equal(seen, torch.cat([rows(12, 4, 0, step) for step in range(3, 6)]))


def test_pool_is_a_function_of_its_seed_and_kept(tmp_path):
    pool = make_pool(20, 3, tmp_path)
    again = make_pool(20, 3, tmp_path)
    fresh = make_pool(20, 3, tmp_path / "other")
    assert torch.equal(pool.pictures, again.pictures) and torch.equal(pool.pictures, fresh.pictures)
    assert pool.captions == again.captions == fresh.captions
    assert pool.floats(torch.arange(3)).aminmax().max <= 1


def test_every_word_is_one_token_and_fits(tokenizer):
    for word in VOCABULARY:
        assert len(tokenizer(word).input_ids) == 3
    longest = "a picture of a large orange triangle to the right of a small purple square on a white background"
    ids = token_ids(tokenizer, [longest, ""])
    assert ids.shape == (2, LENGTH) and (ids[0] == tokenizer.eos_token_id).any()


@pytest.mark.truth
def test_psnr_is_the_definition():
    a, b = torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.1)
    assert autoencoder.psnr(a, b).item() == pytest.approx(20.0, abs=1e-4)
    assert autoencoder.psnr(2 * a, 2 * b, span=2.0).item() == pytest.approx(20.0, abs=1e-4)


@pytest.mark.truth
def test_standardising_the_latents_changes_no_picture(examples):
    torch.manual_seed(0)
    vae = autoencoder.build().eval()
    pool = Pool((examples[0][:300] * 255).round().to(torch.uint8), examples[1][:300])
    pictures = pool.floats(torch.arange(16))
    with torch.no_grad():
        before = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        spread = vae.encode(pictures).latent_dist
        autoencoder.standardise(vae, pool, n=300)
        after = vae.decode(vae.encode(pictures).latent_dist.mean).sample
        means = torch.cat([vae.encode(pool.floats(r)).latent_dist.mean for r in torch.arange(300).split(100)])
        scaled = vae.encode(pictures).latent_dist
    assert torch.allclose(before, after, atol=1e-3)
    assert means.mean((0, 2, 3)).abs().max() < 1e-3 and (means.std((0, 2, 3)) - 1).abs().max() < 1e-3
    # The posterior's width shrinks with the scale, so that noise relative to the latents stays the same.
    ratio = (scaled.std / spread.std).mean((0, 2, 3)) * (spread.mean.std((0, 2, 3)) / scaled.mean.std((0, 2, 3)))
    assert (ratio - 1).abs().max() < 1e-2


@pytest.mark.truth
def test_disturbed_latents_have_both_noises_at_the_scales_given():
    generator, zero = torch.Generator().manual_seed(0), torch.zeros(4000, 8, 8, 8)
    whole = decoder.disturbed(zero, 0.0, 0.3, generator)
    assert torch.equal(whole, whole[..., :1, :1].expand_as(whole))
    assert whole.var().item() == pytest.approx(0.3**2 / 3, rel=0.05)  # the mean square of a uniform scale
    cells = decoder.disturbed(zero, 0.6, 0.0, generator)
    assert cells.var().item() == pytest.approx(0.6**2 / 3, rel=0.05)
    assert cells.mean((2, 3)).var().item() == pytest.approx(0.6**2 / 3 / 64, rel=0.05)


def _decoder_run(tmp_path, monkeypatch, *more: str, gain: float = 1.0) -> tuple[Path, set[str], set[str]]:
    """Two steps from the autoencoder of shapes-sd, its encoder `gain` times louder: the run, and the names of the
    parameters that stayed and moved."""
    folder, run = tmp_path / "first", tmp_path / "run"
    first = load_autoencoder(CHECKPOINTS / "shapes-sd" / "vae")
    first.quant_conv.weight[:8] *= gain
    first.quant_conv.bias[:8] *= gain
    first.save_pretrained(folder)
    monkeypatch.setattr(decoder, "POOL", 64)
    monkeypatch.setattr("sys.argv", ["decoder", "--autoencoder", str(folder), "--out", str(run), "--steps", "2",
                                     "--device", "cpu", *more])
    decoder.main()
    old, new = (load_autoencoder(path).state_dict() for path in (folder, run / "vae"))
    stayed = {key for key in old if torch.equal(old[key], new[key])}
    return run, stayed, set(old) - stayed


def test_a_decoder_is_trained_on_an_encoder_that_stays(tmp_path, monkeypatch):
    _, stayed, moved = _decoder_run(tmp_path, monkeypatch)
    assert moved and not any(key.startswith(("encoder", "quant_conv")) for key in moved)
    assert not any(key.endswith("weight") and key.startswith(("decoder", "post_quant_conv")) for key in stayed)


def test_an_encoder_trained_with_it_has_standard_latents_and_one_posterior_width(tmp_path, monkeypatch):
    run, stayed, _ = _decoder_run(tmp_path, monkeypatch, "--encoder", gain=3.0)
    assert not any(key.endswith("weight") for key in stayed)
    pictures, vae = make_pool(64, 1, tmp_path / "pools").floats(torch.arange(64)), load_autoencoder(run / "vae")
    with torch.no_grad():
        posterior = vae.encode(pictures).latent_dist
        # The decoder sees standardised latents in training, and so it does afterwards.
        assert autoencoder.psnr(vae.decode(posterior.mean).sample, pictures, span=2.0).mean() > 28
    assert posterior.mean.mean((0, 2, 3)).abs().max() < 1e-3
    assert (posterior.mean.std((0, 2, 3)) - 1).abs().max() < 1e-3
    assert posterior.std.flatten().tolist() == pytest.approx([0.01] * posterior.std.numel(), rel=1e-4)


@pytest.mark.truth
def test_an_encoder_gains_nothing_by_louder_latents(examples):
    """Power is one for all pictures together: a code multiplied or moved as a whole has the same loss."""
    torch.manual_seed(0)
    vae, pictures = autoencoder.build().eval(), 2 * examples[0][:16] - 1
    losses = []
    for gain, shift in ((1.0, 0.0), (3.0, 0.0), (1.0, 2.0)):
        louder = copy.deepcopy(vae)
        with torch.no_grad():
            louder.quant_conv.weight[:8] *= gain
            louder.quant_conv.bias[:8] = gain * louder.quant_conv.bias[:8] + shift
        loss, _ = decoder.loss_of(louder, pictures, 0.6, 0.3, torch.Generator().manual_seed(1), encoder=True)
        loss.backward()
        losses.append(loss.item())
        assert louder.encoder.conv_in.weight.grad.abs().max() > 0
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-4)


@pytest.mark.truth
@pytest.mark.parametrize("copies", [1, 8, 256])
def test_one_weighted_token_acts_as_that_many_equal_tokens(tokenizer, examples, copies):
    torch.manual_seed(0)
    net = sd3.build_transformer().eval()
    nn.init.normal_(net.proj_out.weight, std=0.1)
    text = nn.ModuleList(sd3.build_text_encoders(tokenizer)).eval()
    x, t = torch.randn(2, 8, 8, 8), torch.tensor([100.0, 800.0])
    with torch.no_grad():
        sequence, pooled = sd3.encode_text(text, token_ids(tokenizer, examples[1][:2]))
        with sd3.copies_of_last_token(copies):
            one = net(x, sequence, pooled, t).sample
        padding = sequence.new_zeros(2, copies, sequence.shape[-1])
        many = net(x, torch.cat([sequence[:, :-1], padding], 1), pooled, t).sample
    assert one.abs().mean() > 0.01 and torch.allclose(one, many, atol=1e-4)


def test_t5_slot_gives_zero_for_every_token():
    encoder, tokenizer = sd3.build_t5()
    ids = tokenizer(["a red circle"], padding="max_length", max_length=20, return_tensors="pt").input_ids
    assert encoder(ids).last_hidden_state.abs().max() == 0


@pytest.mark.truth
def test_a_perfect_network_has_no_loss(tokenizer, examples):
    latents, tokens = torch.randn(6, 8, 8, 8), token_ids(tokenizer, examples[1][:6])
    empty = token_ids(tokenizer, [""])[0]
    alphas = sd.build_scheduler().alphas_cumprod

    class Text(nn.Module):
        def forward(self, tokens, **_):
            zero = torch.zeros(len(tokens), LENGTH, 64)
            return type("Out", (), {"last_hidden_state": zero, "hidden_states": [zero, zero],
                                    "text_embeds": torch.zeros(len(tokens), 64)})()

    class Oracle(nn.Module):
        def forward(self, noisy, t, text):
            a = alphas[t].reshape(-1, 1, 1, 1)
            return type("Out", (), {"sample": (noisy - a.sqrt() * latents) / (1 - a).sqrt()})()

    class Velocity(nn.Module):
        def forward(self, noisy, sequence, pooled, t):
            return type("Out", (), {"sample": (noisy - latents) / (t / 1000).reshape(-1, 1, 1, 1)})()

    generator = torch.Generator().manual_seed(0)
    nets = {"text_encoder": Text(), "unet": Oracle(), "text": [Text(), Text()], "transformer": Velocity()}
    assert sd.loss_of(nets, latents, tokens, empty, alphas, generator, 0)[0] < 1e-6
    assert sd3.loss_of(nets, latents, tokens, empty, generator)[0] < 1e-6


@pytest.mark.truth
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_shift_moves_the_noise_levels_trained_on(shift):
    """sigma -> S sigma / (1 + (S - 1) sigma): the median of the logit-normal, 1/2, goes to S / (1 + S)."""
    seen = []

    class Text(nn.Module):
        def forward(self, tokens, **_):
            zero = torch.zeros(len(tokens), LENGTH, 4)
            return type("Out", (), {"hidden_states": [zero, zero], "text_embeds": torch.zeros(len(tokens), 4)})()

    class Velocity(nn.Module):
        def forward(self, noisy, sequence, pooled, t):
            seen.append(t / 1000)
            return type("Out", (), {"sample": noisy})()

    nets = {"text": [Text()], "transformer": Velocity()}
    tokens = torch.zeros(4000, LENGTH, dtype=torch.int64)
    sd3.loss_of(nets, torch.zeros(4000, 8, 1, 1), tokens, tokens[0], torch.Generator().manual_seed(0), shift=shift)
    assert seen[0].median().item() == pytest.approx(shift / (1 + shift), abs=0.02)


class GaussianNoiseNet(nn.Module):
    """E[eps | x_t] = sqrt(1 - alpha_t) x_t, exact where the latents are standard normal; alpha between the timesteps
    by its log-odds."""

    def __init__(self, alphas):
        super().__init__()
        self.log_ratio = ((1 - alphas) / alphas).log()

    def forward(self, x, t, text):
        low = t.floor().long().clamp(max=len(self.log_ratio) - 2)
        share = torch.sigmoid(torch.lerp(self.log_ratio[low], self.log_ratio[low + 1], t - low))
        return type("Out", (), {"sample": share.sqrt().reshape(-1, 1, 1, 1) * x})()


@pytest.fixture(scope="module")
def gaussian_teacher(tokenizer):
    alphas = sd.build_scheduler().alphas_cumprod
    text = CLIPTextModel(text_config(tokenizer, width=128, layers=3))
    return VelocityTeacher(GaussianNoiseNet(alphas), text, alphas)


@pytest.mark.truth
def test_the_teacher_knows_the_mean_velocity_of_gaussian_latents(gaussian_teacher, tokenizer):
    # x_sigma = (1 - sigma) x0 + sigma eps with both standard normal: E[eps - x0 | x] = (2 sigma - 1) x / var(x).
    sigma = torch.tensor([0.05, 0.3, 0.5, 0.72, 0.9])
    x = torch.randn(5, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    velocity, known = gaussian_teacher(x, sigma, token_ids(tokenizer, ["a red circle"] * 5))
    level = sigma.reshape(-1, 1, 1, 1)
    assert known.all()
    torch.testing.assert_close(velocity, (2 * level - 1) * x / ((1 - level) ** 2 + level**2), atol=1e-4, rtol=1e-4)


def test_the_teachers_schedule_ends_before_pure_noise(gaussian_teacher):
    alphas = sd.build_scheduler().alphas_cumprod
    odds = ((1 - alphas) / alphas).sqrt()
    at = torch.tensor([0, 17, 500, 999])
    t, known = gaussian_teacher.timestep((odds / (1 + odds))[at])
    assert torch.allclose(t, at.float(), atol=1e-2) and known[:3].all()
    t, known = gaussian_teacher.timestep(torch.tensor([1e-4, 0.99]))
    assert t.tolist() == [0, 999] and known.tolist() == [True, False]


@pytest.mark.truth
def test_a_teacher_lowers_the_variance_of_the_target_and_not_its_mean(gaussian_teacher, tokenizer):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 8, 8, 8, generator=generator)
    sigma = torch.full((512,), 0.7)
    var = 0.3**2 + 0.7**2  # eps given x is normal with mean 0.7 x / var and variance 0.3^2 / var
    eps = 0.7 * x / var + 0.3 / var**0.5 * torch.randn(512, 8, 8, 8, generator=generator)
    own = eps - (x - 0.7 * eps) / 0.3
    noisy = x.expand(512, -1, -1, -1)
    answers = gaussian_teacher(noisy, sigma, token_ids(tokenizer, ["a red circle"]).expand(512, -1))
    mixed = mixed_target(own, *answers, 0.8)
    assert (mixed.mean(0) - own.mean(0)).square().mean() < 3 * own.var(0).mean() / 512
    assert torch.allclose(mixed.var(0), 0.04 * own.var(0), rtol=1e-3)
    untold = mixed_target(own, answers[0], torch.zeros(512, dtype=torch.bool), 0.8)
    assert torch.equal(untold, own)


def test_the_first_text_encoder_says_what_the_teachers_says(tokenizer, examples):
    torch.manual_seed(0)
    trained = CLIPTextModel(text_config(tokenizer, width=128, layers=3)).eval()
    tokens = token_ids(tokenizer, examples[1][:4])
    encoder = sd3.build_text_encoders(tokenizer, trained)[0].eval()
    with torch.no_grad():
        wanted = trained(tokens).last_hidden_state
        found = encoder.text_model.final_layer_norm(encoder(tokens, output_hidden_states=True).hidden_states[-2])
    torch.testing.assert_close(found, wanted)


def test_a_saved_flow_pipeline_can_be_gone_on_from(tokenizer, tmp_path):
    torch.manual_seed(0)
    nets = nn.ModuleDict({"transformer": sd3.build_transformer(), "text": nn.ModuleList(
        sd3.build_text_encoders(tokenizer))})
    kept = {name: value.clone() for name, value in nets.state_dict().items()}
    sd3.save(nets, load_autoencoder(CHECKPOINTS / "shapes-sd" / "vae"), tokenizer, tmp_path)
    transformer, texts = sd3.load_nets(tmp_path)
    again = nn.ModuleDict({"transformer": transformer, "text": nn.ModuleList(texts)}).state_dict()
    assert again.keys() == kept.keys() and {v.dtype for v in again.values() if v.is_floating_point()} == {torch.float32}
    for name, value in kept.items():  # the transformer is stored in half precision
        torch.testing.assert_close(again[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.truth
def test_noise_weights_are_min_snr_first_and_velocity_weights_later():
    alphas = sd.build_scheduler().alphas_cumprod.double()
    snr, error = alphas / (1 - alphas), torch.rand(1000, dtype=torch.float64)
    first, later = sd.weight(snr, 0), sd.weight(snr, sd.SWITCH)
    assert first.max() <= 1 and first[-1] == 1 and math.isclose(first[0], sd.GAMMA / snr[0], rel_tol=1e-6)
    # v = a eps - s x0 at fixed x_t: an error d of eps is an error -(s/a) d of x0, hence d (a + s^2/a) = d / a of v.
    noisy = snr + 1 < sd.GAMMA
    assert torch.allclose((later * error)[noisy], (error / alphas)[noisy])


def test_oversampling_repeats_the_captions_with_the_word_and_no_other():
    captions = ["a red star", "a red star on black", "a blackish star", "two rings on a black background"]
    latents, again = oversample(torch.arange(4), captions, "black", 3)
    assert latents.tolist() == [0, 1, 1, 1, 2, 3, 3, 3] and again == [captions[i] for i in latents.tolist()]
    assert oversample(torch.arange(4), captions, "black", 1)[1] == captions
    for word, times in (("mauve", 3), ("black", 0)):
        with pytest.raises(ValueError, match=f"--oversample {word} {times}"):
            oversample(torch.arange(4), captions, word, times)


def test_oversampling_by_category_goes_by_the_meaning_of_the_caption():
    captions = ["a red star", "a star", "a large red star", "a picture of a blue ring", "a red star and a blue ring"]
    _, again = oversample(torch.arange(5), captions, "colours", 2)
    assert again == [captions[i] for i in (0, 0, 1, 2, 3, 3, 4)]


def test_hard_negatives_differ_from_their_caption():
    rng = np.random.default_rng(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        caption = "a red circle above a blue square on a black background"
        wrong = clip.hard_negatives(caption, 20, rng)
        assert len(wrong) == 20 and all(parse(text).key != parse(caption).key for text in wrong)


def test_clip_loss_ignores_equal_captions(tokenizer):
    torch.manual_seed(0)
    model = clip.build(tokenizer).eval()
    tokens = token_ids(tokenizer, ["a red circle"] * 3)
    negatives = token_ids(tokenizer, ["a blue circle"] * 3).reshape(3, 1, -1)
    pixels = torch.randn(3, 3, 64, 64).clamp(-1, 1)
    loss, _ = clip.loss_of(model, pixels, tokens, negatives)
    pictures, texts = clip.embed(model, pixels=pixels), clip.embed(model, tokens=tokens)
    other = clip.embed(model, tokens=negatives[:, 0])
    gap = model.logit_scale.exp() * ((pictures * texts).sum(1) - (pictures * other).sum(1))
    assert loss.item() == pytest.approx(-torch.nn.functional.logsigmoid(gap).mean().item() / 2, abs=1e-5)


def test_a_missing_autoencoder_says_what_to_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pretrain\.autoencoder"):
        load_autoencoder(tmp_path)


def test_clip_goes_on_from_a_folder_and_at_no_rate_stays_what_it_was(tmp_path, monkeypatch):
    folder = CHECKPOINTS / "shapes-clip"
    arguments = ["--init", str(folder), "--out", str(tmp_path / "run"), "--steps", "2", "--lr", "0", "--pool", "64",
                 "--pool-seed", "5", "--relations", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["clip", *arguments])
    clip.main()
    old, new = (CLIPModel.from_pretrained(path).state_dict() for path in (folder, tmp_path / "run" / "model"))
    assert old.keys() == new.keys() and all(torch.allclose(old[k], new[k], atol=1e-6) for k in old)
    texts = ["a red circle left of a blue star"]
    folders = (folder, tmp_path / "run" / "model")
    tokens = [CLIPProcessor.from_pretrained(path)(text=texts).input_ids for path in folders]
    assert tokens[0] == tokens[1]


def test_trimming_tokens_leaves_the_embedding(tokenizer):
    model = clip.build(tokenizer).eval()
    tokens = token_ids(tokenizer, ["a red circle", "two blue stars on a black background"])
    short = clip.trimmed(tokens, tokenizer.eos_token_id)
    assert short.shape[1] < tokens.shape[1]
    assert torch.allclose(clip.embed(model, tokens=tokens), clip.embed(model, tokens=short), atol=1e-5)


def test_attribute_targets_say_what_the_caption_says():
    said = attribute_targets(["two small red stars and a ring on a black background", "a ring left of a star"])
    first, second = said.tolist()
    assert first[1] == 2 and first[5] == 1 and first[6] == 0 and first[2] > 0 and first[3] > 0 and first[9] > 0
    assert second[8] == 1 + RELATIONS.index("left of") and second[9] == 0
    assert (said >= 0).all() and all((said[:, i] < n).all() for i, n in enumerate(CLASSES))


def test_labelled_pool_says_what_was_drawn(tmp_path):
    pool = make_labelled_pool(24, 3, tmp_path)
    again = make_labelled_pool(24, 3, tmp_path)
    assert torch.equal(pool.pictures, again.pictures) and torch.equal(pool.labels, again.labels)
    whole = pool.labels[:, 2 * PATCHES :].long()
    counts = whole[:, :-1].reshape(24, len(SHAPES), 4)[:, :, 0]
    assert counts.sum(1).tolist() == [parse(caption).count for caption in pool.captions]
    inside = pool.labels[:, :PATCHES] > 0
    assert (inside == (pool.labels[:, PATCHES : 2 * PATCHES] > 0)).all() and 0.02 < inside.float().mean() < 0.6


def test_heads_learn_from_features_that_hold_the_answer(tokenizer):
    """Cross entropies fall to near zero for a feature that is the answer itself."""
    captions = ["a red circle", "two blue stars", "a ring left of a star"]
    tokens, targets = token_ids(tokenizer, captions), attribute_targets(captions)
    heads, hidden = CaptionHeads(64, len(tokenizer)), torch.randn(3, tokens.shape[1], 64)
    end = tokens.eq(tokenizer.eos_token_id).int().argmax(-1)
    optimiser = torch.optim.Adam(heads.parameters(), lr=0.05)
    for _ in range(150):
        loss = heads(hidden, tokens, end, targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.05


def test_said_labels_agree_with_the_scene_wherever_the_caption_says_something(tmp_path):
    """Caption and picture are read into one table: what the first says, the second shows."""
    pool = make_labelled_pool(200, 4, tmp_path)
    said, drawn = said_labels(pool.captions), pool.labels[:, 2 * PATCHES :].long()
    assert said.shape == (200, len(OF_SAID)) and all((said[:, i] < n).all() for i, n in enumerate(OF_SAID))
    spoken = said[:, :-1] > 0
    assert (said[:, :-1][spoken] == drawn[:, :-1][spoken]).all()
    sides = said[:, 3:-1:4]
    assert ((sides > 0).sum(1) == 2 * torch.tensor([parse(c).relation is not None for c in pool.captions])).all()
    assert (sides > 0).any() and (said[:, -1] > 0).any()
    assert (said[:, -1][said[:, -1] > 0] - 1 == drawn[:, -1][said[:, -1] > 0]).all()


def test_said_labels_bind_a_relation_to_both_shapes():
    first, second = said_labels(["a ring left of a star", "a star left of a ring"])
    ring, star = (4 * list(SHAPES).index(shape) + 3 for shape in ("ring", "star"))
    assert first[ring] == second[star] == 1 + RELATIONS.index("left of")
    assert first[star] == second[ring] == 1 + RELATIONS.index("right of")


def test_the_binding_head_learns_what_is_bound():
    captions = ["a ring left of a star", "a star left of a ring"]
    captions += ["a red ring and a blue star", "a blue ring and a red star"]
    labels, pooled, head = said_labels(captions), torch.randn(4, 32), BindingHead(32)
    optimiser = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(150):
        loss = head(pooled, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    assert head(pooled, labels[[1, 0, 3, 2]]) > 10 * loss


def test_centres_are_where_the_shapes_stand(tmp_path):
    """Of two shapes that a relation binds, the first stands on its side of the second."""
    pool = make_labelled_pool(200, 4, tmp_path)
    where, there = centres(pool.labels)
    assert where.abs().max() < 1 and there.any(1).all()
    axis = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}
    found = 0
    for caption, middle in zip(pool.captions, where):
        spec = parse(caption)
        if spec.relation:
            first, second = (middle[list(SHAPES).index(group.shape)] for group in spec.groups)
            k, sign = axis[spec.relation]
            found += 1
            assert sign * (first - second)[k] > 0, caption
    assert found > 20


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile wants a C++ compiler")
def test_the_attention_of_shapes_sd3_compiles():
    """In float32 the compiler fuses it, and then asks for a bias of two dimensions."""
    parts = [torch.randn(2, 2, 5, 8, requires_grad=True) for _ in range(3)]
    with sd3.copies_of_last_token(8.0):
        compiled = torch.compile(sd3.attention_with_copies)(*parts)
        torch.testing.assert_close(compiled, sd3.attention_with_copies(*parts))
