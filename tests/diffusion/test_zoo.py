"""load_model: names, folders, and what it says when something is wrong."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from surveylib.diffusion import zoo
from surveylib.diffusion.lora import add_lora
from surveylib.diffusion.pipelines import ADAPTERS
from surveylib.diffusion.tiny import TINY, tiny_pipeline
from surveylib.diffusion.zoo import FULL_SCALE, ModelUnavailable, list_models, load_model

PROMPTS = ["a red circle", "a blue square"]
NAMES = ["tiny-sd", "tiny-sdxl", "tiny-sd3", "tiny-flux"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The tiny pipelines as folders, in half precision on disk as the shipped models are."""
    root = tmp_path_factory.mktemp("folders")
    for name in NAMES:
        pipeline = tiny_pipeline(name)
        network = "unet" if hasattr(pipeline, "unet") else "transformer"
        getattr(pipeline, network).half()
        pipeline.vae.half()
        pipeline.save_pretrained(root / name)
    return root


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved / "tiny-sd", tmp_path / "model")


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def shipped(saved, tmp_path, monkeypatch):
    """A repository in which shapes-sd is the tiny pipeline."""
    checkpoints = tmp_path / "repository" / "surveylib" / "worlds" / "shapes" / "checkpoints"
    shutil.copytree(saved / "tiny-sd", checkpoints / "shapes-sd")
    monkeypatch.setattr(zoo, "CHECKPOINTS", checkpoints)
    return checkpoints / "shapes-sd"


@torch.no_grad()
def output(model):
    x = model.initial_noise(2, torch.Generator().manual_seed(0))
    return model.predict(x, model.schedule.grid(4)[1], model.encode(PROMPTS)).output


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_folder_loads_and_computes_the_same(name, saved, tmp_path):
    settings = {"resolution": 32, "default_guidance": 2.0}
    first = load_model(saved / name, **settings)
    first.pipeline.save_pretrained(tmp_path / "again")
    again = load_model(str(tmp_path / "again"), **settings)
    assert torch.equal(output(first), output(again))
    assert type(first).__name__ == type(again).__name__


@pytest.mark.parametrize("name", NAMES)
def test_a_default_load_gives_one_dtype_eval_and_frozen_parts(name, saved):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model = load_model(saved / name)
    parts = {k: v for k, v in model.pipeline.components.items() if isinstance(v, torch.nn.Module)}
    assert {p.dtype for part in parts.values() for p in part.parameters()} == {torch.float32}
    assert not any(part.training for part in parts.values())
    assert {p.requires_grad for k, part in parts.items() if k != model.part for p in part.parameters()} == {False}
    assert all(p.requires_grad for p in model.network.parameters())
    assert load_model(saved / name, dtype="bfloat16").dtype == torch.bfloat16


def test_loading_is_quiet(saved, capfd):
    load_model(saved / "tiny-sd3")
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_settings_come_from_the_folder_and_the_call_goes_before(saved, tmp_path):
    path = shutil.copytree(saved / "tiny-sd3", tmp_path / "model")
    assert load_model(path).max_sequence_length == 256
    (path / "surveylib.json").write_text(
        json.dumps({"max_sequence_length": 8, "default_guidance": 3.0, "default_steps": 20})
    )
    model = load_model(path)
    assert (model.max_sequence_length, model.default_guidance, model.default_steps) == (8, 3.0, 20)
    assert load_model(path, default_guidance=1.0).default_guidance == 1.0
    (path / "surveylib.json").write_text('{"guidance": 3}')
    with pytest.raises(ValueError, match="unknown setting 'guidance'; there are default_guidance"):
        load_model(path)
    with pytest.raises(ValueError, match="unknown setting 'steps'"):
        load_model("tiny-sd", steps=3)


@pytest.mark.parametrize(("key", "value"), [
    ("default_steps", 0), ("default_steps", 2.5), ("default_steps", True), ("max_sequence_length", -1),
    ("default_guidance", float("nan")), ("default_guidance", "3"), ("resolution", 0), ("resolution", (64, 0))])
def test_settings_out_of_range(key, value):
    with pytest.raises(ValueError, match=f"load_model: {key} = .*; allowed: "):
        load_model("tiny-sd", **{key: value})


@pytest.mark.parametrize(("file", "words"), [
    ("adapter/pytorch_lora_weights.safetensors", "--adapter .*load_lora"),
    ("pytorch_lora_weights.safetensors", "--adapter .*load_lora"),
    ("pipeline/model_index.json", "the model that it trained is .*pipeline"), ("recipe.json", "surveylib resume")])
def test_the_folder_of_a_run_is_no_model(tmp_path, file, words):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("{}")
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_by_name(name):
    model = load_model(name)
    assert model.name == name and model.latent_shape == (4, 8, 8)
    assert torch.equal(output(model), output(load_model(name)))
    if name.endswith(("turbo", "schnell")):
        assert (model.default_guidance, model.default_steps) == (1.0, 4)


# -- errors ------------------------------------------------------------------------------------------------------------
def test_an_unknown_name_lists_what_exists():
    with pytest.raises(ValueError) as error:
        load_model("shapes-sdd")
    for name in ["shapes-sdd", *zoo.SHIPPED, *FULL_SCALE, *TINY]:
        assert name in str(error.value)


def test_shipped_models_load_by_name(shipped):
    assert load_model("shapes-sd").name == "shapes-sd"
    assert ready()["shapes-sd"]


def ready():
    return {row["name"]: row["ready"] for row in list_models()}


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_shipped_model_without_a_weight_file_is_not_ready(shipped, part):
    next((shipped / part).glob("*.safetensors")).unlink()
    assert not ready()["shapes-sd"]


def test_half_a_download_is_not_ready(saved, tmp_path, monkeypatch):
    """Ready only when all parts are there, in the variant that is loaded, and all shards of a list."""
    cache = shutil.copytree(saved / "tiny-sd", tmp_path / "sd1.5")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache",
                        lambda hub_id, file: str(cache / file) if hub_id == FULL_SCALE["sd1.5"].hub_id else None)
    assert not ready()["sd1.5"]  # the plain files, while "fp16" is loaded
    for path in cache.glob("*/*.safetensors"):
        path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
    assert ready()["sd1.5"] and not ready()["sdxl"]
    file = next((cache / "unet").glob("*.safetensors"))
    shard = file.rename(file.with_name("diffusion_pytorch_model.fp16-00001-of-00002.safetensors"))
    assert not ready()["sd1.5"]
    listed = {"weight_map": {"a": shard.name, "b": shard.name.replace("00001", "00002")}}
    (cache / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(listed))
    assert not ready()["sd1.5"]
    shutil.copy(shard, cache / "unet" / listed["weight_map"]["b"])
    assert ready()["sd1.5"]
    (cache / "model_index.json").unlink()
    assert not ready()["sd1.5"]


@pytest.mark.parametrize("damage", ["missing", "cut", "pointer", "empty"])
@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_damaged_shipped_file_names_itself_and_the_command(shipped, part, damage):
    path = next((shipped / part).glob("*.safetensors"))
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"cut": content[: len(content) // 2], "pointer": b"version https://git", "empty": b""}[damage])
    with pytest.raises(ModelUnavailable) as error:
        load_model("shapes-sd")
    file = f"surveylib/worlds/shapes/checkpoints/shapes-sd/{part}/{path.name}"
    assert str(path) in str(error.value) and f"git checkout -- {file}" in str(error.value)
    path.write_bytes(content)
    load_model("shapes-sd")


def test_damaged_or_missing_configurations(shipped):
    for name in ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]:
        path = shipped / name
        content = path.read_text()
        path.write_text(content[: len(content) // 2])
        with pytest.raises(ModelUnavailable, match=f"damaged: .*{name}(.|\n)*git checkout -- surveylib/.*{name}"):
            load_model("shapes-sd")
        path.write_text(content)
    (shipped / "model_index.json").unlink()
    with pytest.raises(ModelUnavailable, match="git checkout -- surveylib/worlds/shapes/checkpoints/shapes-sd"):
        load_model("shapes-sd")


def test_a_shipped_model_that_is_not_there_at_all(shipped):
    shutil.rmtree(shipped)
    assert not {row["name"]: row["ready"] for row in list_models()}["shapes-sd"]
    with pytest.raises(ModelUnavailable, match=r"git checkout -- surveylib/worlds/shapes/checkpoints/shapes-sd$"):
        load_model("shapes-sd")


def test_a_damaged_folder_of_ones_own(folder):
    next((folder / "unet").glob("*.safetensors")).write_bytes(b"")
    with pytest.raises(ModelUnavailable, match=r"damaged: .*unet(.|\n)*save_pretrained"):
        load_model(folder)
    shutil.rmtree(folder / "vae")
    with pytest.raises(ModelUnavailable, match=r"missing: .*vae|damaged: .*unet"):
        load_model(folder)


def test_a_folder_without_a_vocabulary(folder):
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink(missing_ok=True)
    with pytest.raises(ModelUnavailable, match=r"missing: .*tokenizer, the vocabulary of CLIPTokenizer"):
        load_model(folder)


def test_a_weight_file_of_the_right_length_with_other_bytes(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4000:] = b"\xff" * 4000
    file.write_bytes(data)
    with pytest.raises(ModelUnavailable, match=r"damaged: .*unet, whose weights .* are not finite"):
        load_model(folder)


@pytest.mark.parametrize(("part", "key"), [
    ("unet", "conv_in.weight"), ("vae", "decoder.conv_in.weight"), ("text_encoder", "final_layer_norm.weight")])
def test_missing_weights_inside_a_whole_file(folder, part, key):
    path = next((folder / part).glob("*.safetensors"))
    state = load_file(path)
    state.pop(next(name for name in state if name.endswith(key)))
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=rf"{part} lacks 1 weights, among them .*{key}(.|\n)*save_pretrained"):
        load_model(folder)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_missing_weights_of_each_text_encoder(saved, tmp_path, part):
    """The third is a T5, whose embedding is stored once and used under two names."""
    path = shutil.copytree(saved / "tiny-sd3", tmp_path / "model") / part / "model.safetensors"
    state = load_file(path)
    gone = sorted(state)[-1]
    state.pop(gone)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match=rf"{part} lacks .* weights"):
        load_model(tmp_path / "model")


def test_weights_under_older_names_are_not_missing(folder):
    """Autoencoders were published with `key` for `to_k`; diffusers translates."""
    path = next((folder / "vae").glob("*.safetensors"))
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for name in list(state):
        new = name
        for now, before in older.items():
            new = new.replace(f".{now}.", f".{before}.") if "attentions" in name else new
        state[new] = state.pop(name)
    assert any(".proj_attn." in name for name in state)
    save_file(state, path, metadata={"format": "pt"})
    load_model(folder)


def test_a_folder_saved_with_an_adapter_attached(tmp_path):
    model = load_model("tiny-sd")
    add_lora(model, rank=1)
    model.pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelUnavailable, match="LoRA adapter attached"):
        load_model(tmp_path / "model")


def test_a_folder_without_an_adapter_class_or_without_a_pipeline(folder, tmp_path):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"_class_name": "KolorsPipeline"}))
    with pytest.raises(ValueError, match=r"KolorsPipeline.*StableDiffusionPipeline"):
        load_model(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelUnavailable, match=r"model_index.json"):
        load_model(tmp_path / "empty")


def test_devices_and_dtypes(no_gpu):
    with pytest.raises(ValueError, match="torch sees no such device"):
        load_model("tiny-sd", device="cuda")
    with pytest.raises(ValueError, match="unknown device 'gpu'"):
        load_model("tiny-sd", device="gpu")
    assert load_model("tiny-sd", device="cpu:0").device == torch.device("cpu")  # as accelerate names it
    with pytest.raises(ValueError, match="unknown dtype 'fp16'; there are float32"):
        load_model("tiny-sd", dtype="fp16")


@pytest.mark.parametrize("name", FULL_SCALE)
def test_full_scale_without_a_gpu_says_so_before_loading(name, no_gpu, monkeypatch):
    monkeypatch.setattr(zoo, "_from_pretrained", lambda *args: pytest.fail("it began to load"))
    with pytest.raises(ModelUnavailable) as error:
        load_model(name)
    assert f"{FULL_SCALE[name].gigabytes:g} GB" in str(error.value) and "allow_cpu=True" in str(error.value)
    rehearsal = str(error.value).split("load_model('")[-1].split("'")[0]
    assert type(tiny_pipeline(rehearsal)).__name__ == FULL_SCALE[name].pipeline


@pytest.mark.parametrize(("gpu", "device", "words"), [
    (False, None, "there is no GPU to run it on"), (False, "cpu", "there is no GPU to run it on"),
    (True, "cpu", "device 'cpu' was asked for although there is a GPU")])
def test_the_reason_against_a_full_scale_model_is_the_true_one(gpu, device, words, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    with pytest.raises(ModelUnavailable) as error:
        load_model("sdxl", device=device)
    assert words in str(error.value) and ("no GPU" in str(error.value)) is not gpu


# -- words -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def knows_shapes(shipped):
    (shipped.parent / zoo.VOCABULARY_FILE).write_text(json.dumps({"words": ["a", "red", "circle", "and"]}))
    return load_model("shapes-sd")


def warned(call):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [(str(warning.message), warning.filename) for warning in found]


def test_words_that_a_shipped_model_never_saw_are_named_once(knows_shapes):
    texts = ["a red unicorn", "A unicorn, and a circle.", ""]
    [(message, file)] = warned(lambda: knows_shapes.encode(texts, "ugly"))
    assert "words that shapes-sd never saw: unicorn, ugly." in message and "a, and, circle, red" in message
    assert file == __file__
    assert warned(lambda: knows_shapes.encode(texts)) == []  # these were named
    [(message, _)] = warned(lambda: knows_shapes.encode(["a unicorn and a dragon"]))
    assert "never saw: dragon." in message


def test_known_words_and_the_empty_prompt_are_not_warned_of(knows_shapes, folder):
    assert warned(lambda: knows_shapes.encode(["a red circle", "", "A circle, and a circle."])) == []
    assert warned(lambda: load_model(folder).encode(["a unicorn"])) == []  # who knows what it has seen


def test_the_shipped_clip_model_draws_nothing():
    with pytest.raises(ValueError, match=r"shapes-clip.*is a CLIPModel and draws nothing: .*caption_choice"):
        load_model("shapes-clip")


@pytest.mark.parametrize("name", FULL_SCALE)
def test_full_scale_without_weights_says_what_to_download(name, no_gpu, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailable) as error:
        load_model(name, allow_cpu=True, download=False)
    entry = FULL_SCALE[name]
    for words in [f"hf download {entry.hub_id}", str(tmp_path), entry.licence, f"{entry.gigabytes:g} GB"]:
        assert words in str(error.value)
    assert ("gated" in str(error.value)) == entry.gated


def test_full_scale_without_a_network(no_gpu, monkeypatch):
    def fail(*args):
        raise OSError("connection refused")

    monkeypatch.setattr(zoo, "_from_pretrained", fail)
    with pytest.raises(ModelUnavailable, match=r"connection refused(.|\n)*hf download stabilityai/sdxl-turbo"):
        load_model("sdxl-turbo", allow_cpu=True)


@pytest.mark.parametrize("name", FULL_SCALE)
def test_full_scale_entries_load_with_their_settings(name, no_gpu, monkeypatch):
    """The loading path of each name, on the tiny pipeline of its class."""
    entry, asked = FULL_SCALE[name], []

    def from_pretrained(source, kind, dtype, variant, local):
        asked.append((source, kind, dtype, variant, local))
        tiny = zoo._rehearsal(entry)
        return tiny_pipeline(tiny)

    monkeypatch.setattr(zoo, "_from_pretrained", from_pretrained)
    model = load_model(name, allow_cpu=True, resolution=32)
    assert asked == [(entry.hub_id, entry.pipeline, torch.float32, entry.variant, False)]
    assert model.name == name and type(model) is ADAPTERS[entry.pipeline]
    for key in ("default_guidance", "default_steps", "max_sequence_length"):
        if key in entry.settings:
            assert getattr(model, key) == entry.settings[key]
    assert set(entry.settings) <= set(zoo.SETTINGS) and entry.dtype in zoo.DTYPES
