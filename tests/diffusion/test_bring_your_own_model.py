"""The page 'Bring your own model': its code runs, its tables tell the truth."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel

from surveylib.diffusion.pipelines import ADAPTERS, SETTINGS
from surveylib.diffusion.tiny import TEXT_WIDTH, TINY, autoencoder, t5_encoder, t5_tokenizer
from surveylib.diffusion.zoo import FULL_SCALE

PAGE = Path(__file__).parents[2] / "book" / "bring_your_own_model.md"


def tiny_pixart() -> PixArtSigmaPipeline:
    torch.manual_seed(0)
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, cross_attention_dim=32, caption_channels=TEXT_WIDTH, use_additional_conditions=False,
    )
    pipeline = PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=t5_encoder(tokenizer, TEXT_WIDTH), vae=autoencoder(0.13025),
        transformer=transformer.eval(), scheduler=DDIMScheduler(clip_sample=False),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ADAPTERS, "PixArtSigmaPipeline", None)  # so that it is gone again after the test
    assert len(blocks()) >= 8
    names = {"__name__": "page"}
    for number, block in enumerate(blocks()):
        if block.startswith("# at full scale"):
            names["pipeline"] = tiny_pixart()
            continue
        exec(compile(block, f"{PAGE.name}, block {number + 1}", "exec"), names)
    assert names["images"].shape == (2, 3, 32, 32)
    theirs = names["theirs"]
    assert theirs.std() > 0.05 and (names["ours"] - theirs).abs().max() < 1e-3


def test_the_tables_of_the_page():
    text = PAGE.read_text(encoding="utf-8")
    for name, entry in FULL_SCALE.items():
        gated = "yes" if entry.gated else "no"
        assert f"| `{name}` | `{entry.hub_id}` | {entry.gigabytes:g} | {entry.licence} | {gated} |" in text
    for name in [*TINY, *SETTINGS, *ADAPTERS]:
        assert f"`{name}`" in text


@pytest.mark.parametrize("words", ["alpha = r", "save_pretrained"])
def test_the_traps_are_on_the_page(words):
    assert words.replace("alpha", r"\alpha") in PAGE.read_text(encoding="utf-8")
