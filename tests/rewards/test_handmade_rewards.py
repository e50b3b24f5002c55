"""Hand-made, judge-based and OCR rewards."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from surveylib.rewards import RewardError, load_reward
from surveylib.rewards.handmade import jpeg_kilobytes
from surveylib.rewards.ocr import TextRendering, edit_distance, quoted_text, text_score

NOISE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.truth
def test_jpeg_sizes_are_the_encoders():
    file = io.BytesIO()
    Image.fromarray((NOISE[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(file, format="JPEG", quality=95)
    flat = torch.full_like(NOISE, 0.5)
    more = load_reward("jpeg_incompressibility")(torch.cat([NOISE, flat]))
    assert more[0].item() == pytest.approx(len(file.getvalue()) / 1000, abs=1e-6)
    assert more[0] > 4 * more[1] > 0
    assert torch.equal(load_reward("jpeg_compressibility")(torch.cat([NOISE, flat])), -more)
    assert load_reward("jpeg_incompressibility", quality=20)(NOISE) < more[0]
    with pytest.raises(ValueError, match="1 to 100, not 0"):
        jpeg_kilobytes(NOISE, 0)


@pytest.mark.truth
def test_brightness_and_colourfulness_of_known_pictures():
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(1, 3, 4, 4)
    half = torch.cat([red, 1 - red], 3)  # red beside cyan
    assert load_reward("brightness")(red).item() == pytest.approx(0.299)
    colourful = load_reward("colourfulness")
    # Constant colour: no spread, mean rg = 255, mean yb = 127.5.
    assert colourful(red).item() == pytest.approx(0.3 * 255 * 1.25**0.5, rel=1e-5)
    # Opposite halves: means 0, standard deviations 255 and 127.5.
    assert colourful(half).item() == pytest.approx(255 * 1.25**0.5, rel=1e-4)
    grey = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    score = colourful(grey)
    score.sum().backward()
    assert score.item() < 0.01 and grey.grad.isfinite().all()


def test_text_rule():
    assert quoted_text('a sign "OPEN 24" and "x"') == "OPEN 24" and quoted_text("a “Cat” sign") == "Cat"
    assert quoted_text("no text") is None
    assert edit_distance("kitten", "sitting") == 3 and edit_distance("", "ab") == 2
    assert text_score("we are OP EN now", "open") == 1.0  # contained: nothing is taken off
    assert text_score("0pen", "open") == 0.75
    assert text_score("entirely different and long", "open") == 0.0
    with pytest.raises(ValueError, match="empty"):
        text_score("a", " ")


def drawn(text):
    picture = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(picture).text((20, 20), text, fill="black", font=ImageFont.load_default(44))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255


def test_ocr_reads_drawn_text():
    pytest.importorskip("rapidocr_onnxruntime")
    images = torch.cat([drawn("ALIGN"), drawn("HELLO"), torch.ones(1, 3, 96, 320)])
    scores = load_reward("ocr")(images, ['"align"', 'a poster saying "Align"', '"align"'])
    assert scores[0] == 1 and scores[1] < 0.7 and scores[2] == 0


def test_ocr_without_quotes_or_without_the_extra(monkeypatch):
    with pytest.raises(RewardError, match="quotes no text in row 1"):
        TextRendering(reader=lambda picture: "")(NOISE.repeat(2, 1, 1, 1), ['"a"', "a cat"])
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(ImportError, match=r"surveylib\[rewards\]"):
        load_reward("ocr")
