"""Official checkpoints with random weights, loaded through the library, against forward passes from their names."""

import official_rewards as official
import pytest
import torch
from torch.nn import functional as F

from surveylib.diffusion.tiny import clip_tokenizer
from surveylib.rewards import load_reward
from surveylib.rewards.pretrained import hps, imagereward, mps, open_clip, tiny
from surveylib.rewards.pretrained.heads import LinearHead

PROMPTS = ["a red cat", "two dogs", "x"]


def random_state(shapes, seed=0):
    """Weights of scale 1 over the root of the fan-in, norms around 1, so that every parameter matters."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=g)
        fan = value[0].numel() if value.ndim > 1 else 1
        norm = any(word in name.lower() for word in ("norm", "ln_")) and name.endswith("weight")
        state[name] = 1 + 0.3 * value if norm else value / fan**0.5 if value.ndim > 1 else 0.3 * value
    return state


def pictures(size=tiny.SIZE, seed=1):
    return torch.rand(len(PROMPTS), 3, size, size, generator=torch.Generator().manual_seed(seed))


def open_clip_shapes(config):
    shapes = {"logit_scale": ()}
    for prefix, part in (("visual.", config.vision_config), ("", config.text_config)):
        width, wide = part.hidden_size, part.intermediate_size
        for i in range(part.num_hidden_layers):
            block = f"{prefix}transformer.resblocks.{i}"
            shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
            for name, out, into in (("attn.out_proj", width, width), ("mlp.c_fc", wide, width),
                                    ("mlp.c_proj", width, wide)):
                shapes |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
            shapes |= {f"{block}.{n}.{k}": (width,) for n in ("ln_1", "ln_2") for k in ("weight", "bias")}
    v, t = config.vision_config, config.text_config
    shapes |= {"visual.class_embedding": (v.hidden_size,), "visual.proj": (v.hidden_size, config.projection_dim),
               "visual.conv1.weight": (v.hidden_size, 3, v.patch_size, v.patch_size),
               "visual.positional_embedding": ((v.image_size // v.patch_size) ** 2 + 1, v.hidden_size),
               "token_embedding.weight": (t.vocab_size, t.hidden_size), "positional_embedding": (77, t.hidden_size),
               "text_projection": (t.hidden_size, config.projection_dim)}
    shapes |= {f"{n}.{k}": (v.hidden_size,) for n in ("visual.ln_pre", "visual.ln_post") for k in ("weight", "bias")}
    return shapes | {f"ln_final.{k}": (t.hidden_size,) for k in ("weight", "bias")}


@pytest.mark.truth
def test_hps_from_an_open_clip_file_equals_open_clips_forward(tmp_path):
    config = tiny.clip_config()
    state = random_state(open_clip_shapes(config))
    torch.save({"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}},
               tmp_path / "hps.pt")
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path / "processor")
    reward = load_reward("hps_v2.1", path=tmp_path / "hps.pt", processor=tmp_path / "processor", config=config)
    images = pictures()
    tokens = tokenizer(PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    image = official.open_clip_image(state, reward.preprocess(images), heads=4, layers=2)
    text = official.open_clip_text(state, tokens, heads=2, layers=2, end=tokenizer.eos_token_id)
    expected = F.cosine_similarity(image, text, dim=-1)
    assert expected.std() > 0.02
    torch.testing.assert_close(reward(images, PROMPTS), expected, atol=1e-5, rtol=1e-4)


def test_open_clip_refuses_unknown_names():
    with pytest.raises(ValueError, match="visual\\.trunk"):
        open_clip.from_open_clip({"visual.trunk.stem": torch.zeros(1)})
    with pytest.raises(ValueError, match="version 'v3'"):
        hps.load("v3")


def blip_shapes(vision, text):
    width, wide = vision.hidden_size, vision.intermediate_size
    v, t = "blip.visual_encoder", "blip.text_encoder"
    shapes = {f"{v}.cls_token": (1, 1, width), f"{v}.pos_embed": (1, 17, width),
              f"{v}.patch_embed.proj.weight": (width, 3, 7, 7), f"{v}.patch_embed.proj.bias": (width,)}
    pairs, norms = {}, {f"{v}.norm": width, f"{t}.embeddings.LayerNorm": text.hidden_size}
    for i in range(vision.num_hidden_layers):
        b = f"{v}.blocks.{i}"
        pairs |= {f"{b}.attn.qkv": (3 * width, width), f"{b}.attn.proj": (width, width),
                  f"{b}.mlp.fc1": (wide, width), f"{b}.mlp.fc2": (width, wide)}
        norms |= {f"{b}.norm1": width, f"{b}.norm2": width}
    h, f = text.hidden_size, text.intermediate_size
    for i in range(text.num_hidden_layers):
        b = f"{t}.encoder.layer.{i}"
        for kind, source in (("attention", h), ("crossattention", width)):
            pairs |= {f"{b}.{kind}.self.query": (h, h), f"{b}.{kind}.self.key": (h, source),
                      f"{b}.{kind}.self.value": (h, source), f"{b}.{kind}.output.dense": (h, h)}
            norms |= {f"{b}.{kind}.output.LayerNorm": h}
        pairs |= {f"{b}.intermediate.dense": (f, h), f"{b}.output.dense": (h, f)}
        norms |= {f"{b}.output.LayerNorm": h}
    sizes = (h, 1024, 128, 64, 16, 1)
    pairs |= {f"mlp.layers.{n}": (sizes[k + 1], sizes[k]) for k, n in enumerate((0, 2, 4, 6, 7))}
    pairs |= {"blip.vision_proj": (8, width), "blip.text_proj": (8, h)}  # there, but not used
    shapes |= {f"{n}.weight": shape for n, shape in pairs.items()} | {f"{n}.bias": s[:1] for n, s in pairs.items()}
    shapes |= {f"{n}.{k}": (size,) for n, size in norms.items() for k in ("weight", "bias")}
    return shapes | {f"{t}.embeddings.word_embeddings.weight": (text.vocab_size, h),
                     f"{t}.embeddings.position_embeddings.weight": (text.max_position_embeddings, h)}


@pytest.mark.truth
def test_imagereward_from_its_official_names_equals_their_forward(tmp_path):
    vision, text = tiny.blip_configs()
    state = random_state(blip_shapes(vision, text))
    stored = state | {"blip.text_encoder.embeddings.position_ids": torch.arange(64)[None]}
    torch.save(stored, tmp_path / "ImageReward.pt")
    tokenizer = tiny.bert_tokenizer()
    tokenizer.save_pretrained(tmp_path / "bert")
    reward = load_reward("imagereward", path=tmp_path / "ImageReward.pt", tokenizer=tmp_path / "bert",
                         configs=(vision, text))
    images = pictures()
    batch = tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
    raw = official.blip_reward(state, reward.preprocess(images), batch.input_ids, batch.attention_mask, 4, 2, 2)
    expected = (raw - 0.16717362830052426) / 1.0333394966054072
    assert expected.std() > 0.02
    torch.testing.assert_close(reward(images, PROMPTS), expected, atol=1e-4, rtol=1e-4)


def mps_state(model):
    """Official names and random weights for the tiny MPS; CLIP's names are transformers' own."""
    shapes = {f"model.{n}": tuple(p.shape) for n, p in model.clip.named_parameters()}
    for i in range(2):
        a, b, d = f"cross_model.layers.{i}.0.fn", f"cross_model.layers.{i}.1.fn", tiny.EMBEDDING
        shapes |= {f"{a}.norm.weight": (d,), f"{b}.norm.weight": (d,), f"{a}.to_q.weight": (24, d),
                   f"{a}.to_kv.weight": (16, d), f"{a}.to_out.weight": (d, 24), f"{a}.ff.0.weight": (8 * d, d),
                   f"{a}.ff.2.weight": (d, 4 * d), f"{b}.fused_attn_ff_proj.weight": (24 + 8 + 8 + 8 * d, d),
                   f"{b}.attn_out.weight": (d, 24), f"{b}.ff_out.1.weight": (d, 4 * d)}
    buffers = {"cross_model.layers.0.1.fn.rotary_emb.inv_freq": torch.ones(4),
               "cross_model.layers.0.0.fn.norm.bias": torch.zeros(tiny.EMBEDDING),
               "model.text_model.embeddings.position_ids": torch.arange(77)[None]}
    return random_state(shapes) | buffers


@pytest.mark.truth
@pytest.mark.parametrize("threshold", [mps.EVALUATION_THRESHOLD, 0.6])  # 0.01 keeps every token here
def test_mps_from_its_official_names_equals_their_forward(tmp_path, threshold):
    state = mps_state(tiny.mps_model())
    torch.save(state, tmp_path / "mps.pt")
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path / "processor")
    tiny.image_processor().save_pretrained(tmp_path / "processor")
    reward = load_reward("mps", path=tmp_path / "mps.pt", processor=tmp_path / "processor", model=tiny.mps_model(),
                         condition="red", threshold=threshold)
    images, clip = pictures(), reward.model.clip
    with torch.no_grad():
        tokens = tokenizer([*PROMPTS, "red"], padding="max_length", max_length=77, return_tensors="pt").input_ids
        output = clip.text_model(input_ids=tokens)
        text, end = clip.text_projection(output.last_hidden_state), clip.text_projection(output.pooler_output)
        tokens = clip.vision_model(pixel_values=reward.preprocess(images)).last_hidden_state
        similar = torch.einsum("bid,jd->bij", text[:3], text[3]).amax(2)
        keep = similar / similar.amax(1, keepdim=True) > threshold
        seen = official.mps_cross(state, clip.visual_projection(tokens), text[:3], keep, 3, 8, 2)
        expected = clip.logit_scale.exp() * F.cosine_similarity(seen[:, 0], end[:3], dim=-1)
    assert expected.std() > 0.02 and not keep.all()
    torch.testing.assert_close(reward(images, PROMPTS), expected, atol=1e-4, rtol=1e-4)


def test_mps_scores_do_not_depend_on_the_other_prompts_of_the_batch():
    reward, images = tiny.tiny_reward("mps"), pictures()
    alone = torch.cat([reward(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(reward(images, PROMPTS), alone, atol=1e-4, rtol=1e-4)


def test_aesthetic_head_from_its_official_names(tmp_path):
    state = random_state({n: tuple(p.shape) for n, p in LinearHead(tiny.EMBEDDING).named_parameters()})
    assert set(state) == {f"layers.{i}.{k}" for i in (0, 2, 4, 6, 7) for k in ("weight", "bias")}
    torch.save(state, tmp_path / "head.pth")
    model, tokenizer, _ = tiny.clip_parts()
    for part in (model, tokenizer, tiny.image_processor()):
        part.save_pretrained(tmp_path / "clip")
    reward = load_reward("aesthetic", path=tmp_path / "clip", head=tmp_path / "head.pth")
    x = reward.image_embeddings(pictures())
    torch.testing.assert_close(x.norm(dim=1), torch.ones(3))
    for i in (0, 2, 4, 6, 7):
        x = official.linear(state, f"layers.{i}", x)
    torch.testing.assert_close(reward(pictures()), x[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mapping", [imagereward.from_official, mps.from_official])
def test_unknown_names_are_refused(mapping):
    with pytest.raises(ValueError, match="other\\.weight"):
        mapping({"other.weight": torch.zeros(1)})
