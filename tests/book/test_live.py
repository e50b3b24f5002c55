""" "Try it": the page's own files against torch in node and in Chromium, and what it says to bad input."""

import base64
import io
import json
import shutil
import subprocess
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from live import adapters, build, packing
from live.describe import STILL_PROMPT, tokenizer
from live.graphs import located, sampler_table, stays
from live.runtime import RuntimeMissing, runtime
from notebooks import ROOT
from PIL import Image
from transformers import CLIPTokenizer

from surveylib.diffusion.lora import load_lora, lora_strength
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.zoo import CHECKPOINTS, load_model
from surveylib.evaluation.rows import artefact_hash
from surveylib.rewards.registry import load_reward
from surveylib.worlds.shapes import suites

FOLDER = ROOT / "out" / "live"  # kept between runs: a second run exports nothing
# Of a picture in [0, 1]: the same weights in both, and what rounding the text encoder to half precision may add.
SAME, ROUNDING = 0.0005, 0.1
SEEDS, GUIDANCE = 2, 3.0
ODD = ["", "  two   RED stars ", "a ring. a star", "Naïve café's 42 zebras!", "東京 <|endoftext|> a", "x" * 90]
NODE = shutil.which("node")


@pytest.fixture(scope="session")
def built():
    """The manifest of a page in `FOLDER`. Skips, with the reason, where it cannot be built."""
    if build.missing_packages():
        pytest.skip(build.missing_packages())
    try:
        runtime()
    except RuntimeMissing as error:
        pytest.skip(str(error))
    if not FOLDER.exists() and build.OUT.exists():  # the book's own: what is up to date there is not exported again
        shutil.copytree(build.OUT, FOLDER)
    return build.build(FOLDER)


@pytest.fixture(scope="session")
def model():
    return load_model("shapes-sd")


def torch_pictures(prompt, adapter, strength, steps=10, rounded=True) -> np.ndarray:
    """What the library draws from the fixed seeds; with the text encoder as the page has it, or as it is."""
    model = load_model("shapes-sd")
    if rounded:
        model.pipeline.text_encoder.half().float()
    if adapter:
        load_lora(model, adapters.ADAPTERS / adapter)
    noise = build.fixed_noise()[:SEEDS]
    with torch.no_grad(), lora_strength(model, strength) if adapter else nullcontext():
        latents = sample(model, [prompt] * SEEDS, steps=steps, guidance=GUIDANCE, x=noise)
        return model.decode(latents, clamp=True).numpy()


def in_node(tmp_path, cases=(), texts=()):
    """Answer of `live_node.cjs`."""
    if NODE is None:
        pytest.skip("node is not installed")
    job = {"folder": str(FOLDER), "runtime": str(runtime()), "cases": list(cases), "texts": list(texts), "seeds": SEEDS}
    (tmp_path / "job.json").write_text(json.dumps(job))
    done = subprocess.run([NODE, str(ROOT / "tests/book/live_node.cjs"), str(tmp_path / "job.json")],
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.float32).reshape(SEEDS, 3, 64, 64)


# -- parts ------------------------------------------------------------------------------------------------------------
def test_planes_are_half_precision_in_two_halves():
    values = np.array([0.5, -2.0, 6e-8, 65504.0], np.float32)
    data = np.frombuffer(packing.planes(values), np.uint8)
    back = np.stack([data[4:], data[:4]], 1).copy().view("<f2").ravel()
    assert (back == values.astype(np.float16)).all()
    with pytest.raises(ValueError, match="half precision"):
        packing.planes(np.array([1e6]))


def test_rows_are_near():
    values = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)).numpy()
    codes, scales = packing.in_rows(values)
    assert np.abs(codes * scales[:, None] - values).max() <= np.abs(values).max() / packing.LEVELS
    assert (packing.in_rows(np.zeros((2, 3), np.float32))[0] == 0).all()


def test_what_half_precision_would_spoil_stays_in_the_graph():
    table = np.exp(-np.arange(32, dtype=np.float32) / 3)
    assert stays(table) and not stays(np.tile(table, 9)) and not stays(table.astype(np.float16).astype(np.float32))
    assert stays(np.full(900, -3e38, np.float32)) and stays(np.ones(4, np.float32))


def test_weights_are_found_also_transposed():
    a, b = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    assert located({"x": a, "y": np.ascontiguousarray(b.T)}, {"A": a, "B": b}) == {"A": ("x", False), "B": ("y", True)}
    with pytest.raises(ValueError, match="adapter for it cannot be merged"):
        located({"x": a}, {"B": b})


def test_the_sampler_table_is_the_library(model):
    x = noise = build.fixed_noise()[:1]
    condition = model.encode([STILL_PROMPT])
    with torch.no_grad():
        for t, _, _, p, q in sampler_table(model, 4):
            x = p * x + q * model.output(x, torch.tensor(t), condition, GUIDANCE)
        wanted = sample(model, condition, steps=4, guidance=GUIDANCE, x=noise)
    assert torch.allclose(x, wanted, atol=1e-4)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordLevel"}, "pre_tokenizer": {}}))
    with pytest.raises(ValueError, match="byte-level BPE"):
        tokenizer(tmp_path)


def test_the_page_of_the_book_names_the_precomputed_prompt():
    assert f"“{STILL_PROMPT}”" in (ROOT / "book" / "try_it.md").read_text(encoding="utf-8")


# -- adapters ---------------------------------------------------------------------------------------------------------
def test_shipped_adapters_are_complete_and_one_hacked():
    found = adapters.shipped()
    assert len(found) >= 3 and sum(a.card["hacked"] for a in found) == 1 and found[-1].card["hacked"]
    for adapter in found:
        assert (ROOT / "chapters" / f"{adapter.card['chapter']}.md").is_file()
        assert adapter.card["model_hash"] == artefact_hash("shapes-sd"), f"{adapter.name} was trained on another model"
        assert (adapter.folder / adapters.WEIGHT_FILE).stat().st_size < 500_000


def test_a_card_that_lacks_something_is_named(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / adapters.CARD).write_text('{"technique": "ddpo"}')
    with pytest.raises(ValueError, match="x: the adapter lacks title"):
        adapters.shipped(tmp_path)


def test_only_tested_rows_become_adapters(tmp_path):
    with pytest.raises(ValueError, match="no tested row"):
        adapters.from_measurement("ddpo", tmp_path, tmp_path, tmp_path)


def test_storing_keeps_alpha(tmp_path):
    shipped = adapters.shipped()[0]
    adapters.store(shipped.folder / adapters.WEIGHT_FILE, tmp_path / "copy", shipped.card)
    model = load_model("shapes-sd")
    load_lora(model, tmp_path / "copy")
    assert adapters.shipped(tmp_path)[0].card == shipped.card


# -- parity in node ---------------------------------------------------------------------------------------------------
def test_tokenizers_agree_on_all_prompts_of_the_suites(built, tmp_path):
    texts = [p.text for name in ("train", "held-out", "generalisation") for p in suites.suite(name, 60)] + ODD
    found = in_node(tmp_path, texts=texts)["tokens"]
    for kind, folder in (("model", "shapes-sd/tokenizer"), ("verifier", "shapes-clip")):
        own = CLIPTokenizer.from_pretrained(CHECKPOINTS / folder)
        wanted = own(texts, padding="max_length", max_length=24, truncation=True).input_ids
        assert [t for t, a, b in zip(texts, wanted, found[kind]) if a != b] == []


def test_pictures_are_torchs(built, tmp_path):
    cases = [{"prompt": STILL_PROMPT, "adapter": entry["name"], "strength": s, "steps": 5, "guidance": GUIDANCE}
             for entry in built["adapters"] for s in (0.0, 0.5, 1.0)]
    cases = [case for n, case in enumerate(cases) if case["strength"] or n == 0]  # strength 0 is the same for all
    answer, reward = in_node(tmp_path, cases), load_reward("shapes-pickscore")
    for case, found in zip(cases, answer["pictures"], strict=True):
        wanted = torch_pictures(case["prompt"], case["adapter"], case["strength"], 5)
        assert np.abs(decoded(found["images"]) - wanted).max() < SAME, case
        scores = reward.score(torch.from_numpy(wanted), [case["prompt"]] * SEEDS).numpy()
        assert np.abs(scores - found["scores"]).max() < 0.5, case  # the verifier's weights are coarse
    whole = torch_pictures(STILL_PROMPT, None, 0.0, 5, rounded=False)
    assert np.abs(decoded(answer["pictures"][0]["images"]) - whole).max() < ROUNDING
    assert np.abs(decoded(answer["pictures"][0]["early"]) - decoded(answer["pictures"][0]["images"])).max() > 0.1
    normal = np.array(answer["normal"])
    assert abs(normal.mean()) < 0.06 and abs(normal.std() - 1) < 0.05


# -- in Chromium ------------------------------------------------------------------------------------------------------
def canvases(page) -> np.ndarray:
    """(4, 3, H, W) of what the page shows."""
    shown = page.evaluate("""[...document.querySelectorAll("canvas")].map(c =>
        [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data])""")
    return np.array(shown, np.float32).reshape(4, 64, 64, 4).transpose(0, 3, 1, 2)[:, :3] / 255


def drawn(page, times: int) -> str:
    page.wait_for_selector(f"body[data-drawn='{times}']")
    return page.inner_text("#status")


def slide(page, name: str, value: float) -> None:
    page.evaluate("""([id, v]) => { const e = document.getElementById(id); e.value = v;
        for (const kind of ["input", "change"]) e.dispatchEvent(new Event(kind)); }""", [name, value])


@pytest.mark.browser
def test_the_page_draws_what_torch_draws(built, visit):
    page, problems = visit((FOLDER / "index.html").as_uri())
    page.wait_for_function("document.getElementById('status').textContent.includes('when the book was built')")
    with Image.open(io.BytesIO(page.locator("canvas").first.screenshot())) as shown:
        channels = np.asarray(shown.convert("RGB")).reshape(-1, 3)
        assert channels.std(0).max() > 15  # precomputed pictures stand, with colours on their ground
    page.press("#prompt", "Enter")  # loads first
    drawn(page, 1)
    prompt, hacked = "two yellow stars", built["adapters"][-1]["name"]
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    drawn(page, 2)
    first = built["adapters"][0]["name"]
    assert np.abs(canvases(page)[:SEEDS] - torch_pictures(prompt, first, 1.0)).max() < SAME + 1 / 255
    slide(page, "strength", 0)
    assert "the base model" in drawn(page, 3)
    assert np.abs(canvases(page)[:SEEDS] - torch_pictures(prompt, None, 0)).max() < SAME + 1 / 255
    page.check(f"input[value={hacked}]")
    drawn(page, 4)
    slide(page, "strength", 1.5)
    drawn(page, 5)
    assert np.abs(canvases(page)[:SEEDS] - torch_pictures(prompt, hacked, 1.5)).max() < SAME + 1 / 255
    last = canvases(page)
    slide(page, "step", 2)
    page.wait_for_function("document.getElementById('at').textContent === '2 of 10'")
    page.wait_for_timeout(500)
    assert np.abs(canvases(page) - last).max() > 0.1
    assert problems == []


@pytest.mark.browser
def test_an_address_can_choose_prompt_and_adapter(built, visit):
    name = built["adapters"][1]["name"]
    page, problems = visit((FOLDER / "index.html").as_uri() + f"?prompt=a+red+ring&adapter={name}")
    assert page.input_value("#prompt") == "a red ring" and page.is_checked(f"input[value={name}]")
    page.click("#words button:text-is('on black')")
    assert page.input_value("#prompt") == "a red ring on black" and problems == []


@pytest.mark.browser
def test_the_page_answers_bad_input(built, visit):
    page, problems = visit((FOLDER / "index.html").as_uri())
    page.click("#start")
    drawn(page, 1)
    for text, said in (("", "Type what to draw"), ("a " * 40, "Too long"), ("two zebras", "never read: zebras")):
        page.fill("#prompt", text)
        assert said in page.inner_text("#note")
    page.fill("#prompt", "")
    page.click("#draw")  # refused, nothing happens
    page.fill("#prompt", "a ring")
    page.select_option("#n", "32")
    page.click("#search")
    page.wait_for_function("document.getElementById('draw').textContent === 'Stop'")
    page.wait_for_function("document.getElementById('status').textContent.startsWith('Step')")
    page.click("#draw")  # while it draws: stop
    page.wait_for_function("document.getElementById('status').textContent === 'Stopped.'")
    page.select_option("#n", "4")
    page.click("#search")
    assert "The best four of 4" in drawn(page, 2)
    assert problems == []


@pytest.mark.browser
@pytest.mark.parametrize("name, change, said", [
    ("network-1.js", lambda file: file.unlink(), "network-1.js is missing"),
    ("text-0.js", lambda file: file.write_text(file.read_text()[:5000]), "text-*.js are cut or damaged"),
    ("decoder-0.js", lambda file: file.write_text(file.read_text().replace("A", "B", 9)), "decoder-*.js are cut or"),
])
def test_missing_and_cut_files_are_named(built, visit, tmp_path, name, change, said):
    copied = tmp_path / "live"
    shutil.copytree(FOLDER, copied)
    change(copied / name)
    page, _ = visit((copied / "index.html").as_uri())
    page.click("#start")
    page.wait_for_selector("#status.bad")
    assert said in page.inner_text("#status")
    assert page.is_enabled("#start")


@pytest.mark.browser
def test_without_the_exporter_the_page_says_so(built, visit, tmp_path, monkeypatch):
    shutil.copytree(FOLDER, tmp_path / "live", ignore=shutil.ignore_patterns("*-[0-9].js"))
    monkeypatch.setattr(build, "missing_packages", lambda: "the Python packages onnx are not installed")
    assert build.build(tmp_path / "live")["missing"]
    page, problems = visit((tmp_path / "live" / "index.html").as_uri())
    assert "built without the model (the Python packages onnx" in page.inner_text("#size")
    assert not page.is_visible("#start") and problems == []
