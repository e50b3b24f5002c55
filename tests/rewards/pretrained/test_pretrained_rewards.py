"""Pretrained reward models: preprocessing, gradients, architectures, missing weights."""

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

from surveylib.rewards import load_reward
from surveylib.rewards.pretrained import imagereward, mps, open_clip, tiny
from surveylib.rewards.pretrained.heads import LinearHead
from surveylib.rewards.pretrained.preprocess import Preprocess, crop_or_pad
from surveylib.rewards.pretrained.weights import read_state_dict
from surveylib.worlds.shapes.pretrain.clip import build, build_processor, embed

PROMPTS = ["a red cat", "two dogs"]
SIZES = [(512, 512), (64, 64), (300, 417), (224, 224), (100, 57)]


def eight_bit(height, width, hard=False, seed=0):
    x = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    return (x > 0.5).float() if hard else (x * 255).round() / 255


def pillow(images):
    return [Image.fromarray((x.permute(1, 2, 0) * 255).round().byte().numpy()) for x in images]


@pytest.mark.truth
@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("hard", [False, True])
def test_preprocessing_is_the_reference_within_one_step(height, width, hard):
    images = eight_bit(height, width, hard)
    reference = CLIPImageProcessorPil(do_normalize=False)(pillow(images), return_tensors="pt")["pixel_values"]
    found = Preprocess.from_processor(CLIPImageProcessorPil()).pixels(images)
    assert (found - reference).abs().max() <= 1 / 255 + 1e-6
    assert (found - reference).abs().mean() < 1e-4
    whole = CLIPImageProcessorPil()(pillow(images), return_tensors="pt")["pixel_values"]
    assert (Preprocess.from_processor(CLIPImageProcessorPil())(images) - whole).abs().max() < 0.016


@pytest.mark.truth
@pytest.mark.parametrize("name", ["clip_score", "pickscore", "aesthetic", "mps"])
def test_rewards_through_the_reference_preprocessing_are_the_same(name):
    reward, images = tiny.tiny_reward(name), eight_bit(45, 61)
    found = reward(images, PROMPTS)
    pixels = tiny.image_processor()(pillow(images), return_tensors="pt")["pixel_values"]
    reward.preprocess = lambda _: pixels
    torch.testing.assert_close(found, reward(images, PROMPTS), atol=1e-3, rtol=1e-3)


def test_crop_and_pad():
    x = torch.arange(7.0).expand(1, 3, 4, 7)
    assert crop_or_pad(x, 4)[0, 0, 0].tolist() == [1, 2, 3, 4]
    assert crop_or_pad(x, 4, "even")[0, 0, 0].tolist() == [2, 3, 4, 5]  # torchvision rounds 1.5 to 2
    padded = Preprocess(8, fit="longest", eight_bit=False).pixels(torch.ones(1, 3, 4, 8))
    assert padded[0, 0].sum(1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]
    with pytest.raises(ValueError, match="resample"):
        Preprocess.from_processor(CLIPImageProcessorPil(resample=2))


@pytest.mark.parametrize("name", sorted(tiny.TINY))
def test_gradients_reach_every_picture_and_follow_its_score(name):
    reward = tiny.tiny_reward(name)
    images = torch.rand(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    reward.plain = True  # CLIPScore: the cosine has a gradient below 0 too
    scores = reward(images, PROMPTS)
    (grad,) = torch.autograd.grad(scores.sum(), images)
    assert (grad.abs().sum((1, 2, 3)) > 0).all() and grad.isfinite().all()
    assert all(not p.requires_grad for p in reward.model.parameters())
    step = 1e-3 * grad / grad.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        up, down = (reward((images + s).clamp(0, 1), PROMPTS) for s in (step, -step))
    slope = (up - down) / 2e-3
    torch.testing.assert_close(slope, grad.flatten(1).norm(dim=1), rtol=0.15, atol=1e-4)
    assert reward(images.detach(), PROMPTS[::-1]).shape == (2,)


@pytest.mark.truth
def test_architectures_have_the_released_sizes():
    with torch.device("meta"):
        large = CLIPModel(CLIPConfig(
            projection_dim=768, text_config={"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
            vision_config={"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                           "num_attention_heads": 16, "patch_size": 14}))
        huge, blip = CLIPModel(open_clip.vit_h_14()), imagereward.ImageRewardModel(*imagereward.large())
        multi = mps.MPSModel(open_clip.vit_h_14())
        llava = LlavaForConditionalGeneration(LlavaConfig(text_config={"model_type": "llama", "vocab_size": 32064}))

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert count(large) == 427_616_513 and count(huge) == 986_109_441 and count(llava) == 7_063_427_072
    assert count(LinearHead()) == 927_969
    d, f, n, h = 1024, 4096, 24, 768
    vision = n * (4 * d * d + 4 * d + 2 * d * f + d + f + 4 * d) + d * (16 * 16 * 3 + 1) + d * 198 + 2 * d
    text = 12 * (4 * h * h + 2 * h * h + 2 * h * d + 8 * h + 2 * h * 3072 + h + 3072 + 6 * h) + h * (30524 + 512 + 2)
    assert count(blip) == vision + text + 927_969
    cross = d + d * 1024 + d * 128 + 1024 * d + d * 8 * d + 4 * d * d
    within = d + d * (1024 + 128 + 8 * d) + 1024 * d + 4 * d * d
    assert count(multi) == 986_109_441 + 4 * (cross + within)


def test_shapes_clip_serves_as_clip_score(tmp_path):
    tokenizer = tiny.clip_tokenizer()
    torch.manual_seed(0)
    model = build(tokenizer).eval()
    model.save_pretrained(tmp_path)
    build_processor(tokenizer).save_pretrained(tmp_path)
    images, prompts = eight_bit(64, 64), ["red", "blue"]
    tokens = tokenizer(prompts, padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        cosine = (embed(model, pixels=images * 2 - 1) * embed(model, tokens=tokens)).sum(1)
    reward = load_reward("clip_score", path=tmp_path, plain=True)
    torch.testing.assert_close(reward(images, prompts), cosine, atol=1e-5, rtol=1e-4)
    scored = load_reward("clip_score", path=tmp_path)
    torch.testing.assert_close(scored(images, prompts), 2.5 * cosine.clamp(min=0), atol=1e-5, rtol=1e-4)


def test_vqascore_is_the_models_own_probability():
    reward, images = tiny.tiny_reward("vqascore"), eight_bit(28, 28)
    for image, prompt in zip(pillow(images), PROMPTS):
        text = f'USER: <image>\nDoes this figure show "{prompt}"? Please answer yes or no. ASSISTANT:'
        inputs = reward.processor(images=image, text=text, return_tensors="pt")
        with torch.no_grad():
            logits = reward.model(**inputs).logits[0, -1]
        yes = reward.processor.tokenizer.encode("Yes", add_special_tokens=False)[0]
        both = reward(images, PROMPTS)[PROMPTS.index(prompt)]
        torch.testing.assert_close(both, logits.softmax(-1)[yes], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name, options, words", [
    ("clip_score", {}, "hf download"), ("pickscore", {}, "hf download"), ("vqascore", {}, "hf download"),
    ("aesthetic", {}, "improved-aesthetic-predictor"), ("hps_v2", {"path": None}, "HPS_v2_compressed.pt"),
    ("imagereward", {"path": None}, "THUDM/ImageReward"), ("mps", {}, "Kwai-Kolors/MPS"),
])
def test_missing_weights_say_how_to_get_them(name, options, words, tmp_path, monkeypatch):
    if name in ("clip_score", "pickscore", "vqascore"):
        options = {"path": tmp_path / "none"}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=words):
        load_reward(name, local_only=True, **options)


def test_damaged_and_pickled_files_are_refused(tmp_path):
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04 not all")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    torch.save({"a": 1}, tmp_path / "numbers.pt")
    for name, words in (("cut.pt", "damaged"), ("module.pt", "run code"), ("numbers.pt", "not a dict")):
        with pytest.raises(ValueError, match=words):
            read_state_dict(tmp_path / name)
    torch.save({"layers.0.weight": torch.zeros(3, 3)}, tmp_path / "head.pt")
    model, tokenizer, _ = tiny.clip_parts()
    for part in (model, tokenizer, tiny.image_processor()):
        part.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="missing layers"):
        load_reward("aesthetic", path=tmp_path / "clip", head=tmp_path / "head.pt")


def test_an_unknown_tiny_model_lists_the_known():
    with pytest.raises(ValueError, match=r"clip_score.*vqascore"):
        tiny.tiny_reward("x")
