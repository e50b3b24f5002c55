"""Models by name: the shipped ones, tiny random ones, any local folder, and the full-scale ones.

`load_model` is the one door. It returns a `PipelineModel` in ``eval()``, text encoders and autoencoder frozen.

A folder is what ``pipeline.save_pretrained(folder)`` writes. Beside ``model_index.json`` it may hold ``surveylib.json``
with any of `pipelines.SETTINGS`, for instance ``{"max_sequence_length": 8, "default_guidance": 3.0, "default_steps":
20}``; plain diffusers ignores that file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from surveylib.diffusion.pipelines import ADAPTERS, SETTINGS, PipelineModel, from_pipeline
from surveylib.diffusion.tiny import RESOLUTION, TINY, tiny_pipeline

CHECKPOINTS = Path(__file__).resolve().parents[1] / "worlds" / "shapes" / "checkpoints"
SHIPPED = ("shapes-sd", "shapes-sd3")  # further folders beside them are found by `shipped_models`
SETTINGS_FILE = "surveylib.json"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
VOCABULARY_FILE = "vocabulary.json"  # beside the shipped folders: the words that their models have seen
FINITE_UP_TO = 50_000_000  # weights of a network, up to which all of a folder are looked through
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


class ModelUnavailable(RuntimeError):
    """A known model cannot be loaded here; the message says which file is missing and what to do."""


@dataclass(frozen=True)
class FullScale:
    """A published model.

    Attributes:
        hub_id: repository on the Hugging Face hub.
        pipeline: its diffusers class.
        gigabytes: weights of all parts in half precision, counted from the architectures (parameters x 2 bytes).
        licence: its name; read it on the model page before use.
        gated: the licence must be accepted on the model page while logged in, before the download works.
        dtype: the type it is loaded in on a GPU.
        variant: which of the published weight files is taken ("fp16" or the plain ones).
        settings: what differs from the pipeline's own defaults.
    """

    hub_id: str
    pipeline: str
    gigabytes: float
    licence: str
    gated: bool = False
    dtype: str = "float16"
    variant: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def download_command(self) -> str:
        """The shell command that fetches what `load_model` reads, and no more."""
        weights = f"*/*.{self.variant}.safetensors" if self.variant else "*/*.safetensors"
        return f'hf download {self.hub_id} --include "*.json" "*.txt" "*.model" "{weights}" --exclude "text_encoders/*"'


# Guidance and steps of the turbo and schnell models, of SD3.5 and of FLUX.1-dev: their model cards.
FULL_SCALE: dict[str, FullScale] = {
    "sd1.5": FullScale(
        "stable-diffusion-v1-5/stable-diffusion-v1-5", "StableDiffusionPipeline", 2.1, "CreativeML Open RAIL-M",
        variant="fp16",
    ),
    "sdxl": FullScale(
        "stabilityai/stable-diffusion-xl-base-1.0", "StableDiffusionXLPipeline", 6.9, "CreativeML Open RAIL++-M",
        variant="fp16",
    ),
    "sd-turbo": FullScale(
        "stabilityai/sd-turbo", "StableDiffusionPipeline", 2.6, "Stability AI community licence (sai-nc-community)",
        variant="fp16", settings={"default_guidance": 1.0, "default_steps": 1, "resolution": 512},
    ),
    "sdxl-turbo": FullScale(
        "stabilityai/sdxl-turbo", "StableDiffusionXLPipeline", 6.9, "Stability AI community licence (sai-nc-community)",
        variant="fp16", settings={"default_guidance": 1.0, "default_steps": 1, "resolution": 512},
    ),
    "sd3.5-medium": FullScale(
        "stabilityai/stable-diffusion-3.5-medium", "StableDiffusion3Pipeline", 15.8, "Stability AI Community License",
        gated=True, dtype="bfloat16", settings={"default_guidance": 4.5, "default_steps": 40},
    ),
    "flux.1-dev": FullScale(
        "black-forest-labs/FLUX.1-dev", "FluxPipeline", 33.7, "FLUX.1 [dev] Non-Commercial License",
        gated=True, dtype="bfloat16", settings={"default_guidance": 3.5, "default_steps": 50},
    ),
    "flux.1-schnell": FullScale(
        "black-forest-labs/FLUX.1-schnell", "FluxPipeline", 33.7, "Apache-2.0",
        gated=True, dtype="bfloat16",
        settings={"default_guidance": 1.0, "default_steps": 4, "max_sequence_length": 256},
    ),
}


def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    *,
    allow_cpu: bool = False,
    download: bool = True,
    **settings: Any,
) -> PipelineModel:
    """Load a model by name, or a folder in diffusers' format.

    Args:
        name_or_path: a shipped model ("shapes-sd"), a tiny random one ("tiny-sdxl"), a full-scale one
            ("sdxl"), or the path of a folder. Names go before folders: write "./sdxl" for a folder of that name.
        device: default: the CPU for shipped and tiny models, otherwise a GPU where there is one.
        dtype: a torch.dtype or its name; default: float32, and for full-scale models on a GPU what `FULL_SCALE` says.
        allow_cpu: load a full-scale model although no GPU is there.
        download: fetch a full-scale model that is not in the local cache.
        settings: any of `pipelines.SETTINGS`; they go before those of the folder's ``surveylib.json``.

    Raises:
        ValueError: an unknown name, device, dtype or setting, the message lists what exists; a setting out of range;
        the folder of a run or an adapter, which is no model.
        ModelUnavailable: weights missing, damaged or not to be had, or no GPU; the message says what to do.
    """
    name = str(name_or_path)
    _check_settings(settings, "load_model")
    place, kind = check_model(name, device, allow_cpu), _check_dtype(dtype)
    if name in TINY:
        model = from_pipeline(tiny_pipeline(name), **({"name": name} | _tiny_settings(name) | settings))
        return model.to(place, kind)
    if name in shipped_models():
        model = _load_folder(CHECKPOINTS / name, name, place, kind, settings, git_checkout)
        model.vocabulary = _shipped_vocabulary()
        return model
    if name in FULL_SCALE:
        return _load_full_scale(name, place, kind, download, settings)
    return _load_folder(Path(name), Path(name).name, place, kind, settings, _save_again)


def check_model(name: str, device: str | torch.device | None = None, allow_cpu: bool = False) -> torch.device:
    """Refuses a model that `load_model` would refuse before it looks at weights; returns the device it would take.

    Raises:
        ValueError: an unknown name or device, the message lists what exists; the folder of a run or an adapter.
        ModelUnavailable: a full-scale model without a GPU.
    """
    small = name in TINY or name in shipped_models()
    place = _check_device(device, small)
    if small:
        return place
    if name not in FULL_SCALE and Path(name).is_dir():
        _check_no_run(Path(name))
        return place
    if name not in FULL_SCALE:
        other = ", which is a CLIPModel and draws nothing: `python -m surveylib.worlds.shapes.caption_choice` scores it"
        raise ValueError(f"unknown model {name!r}{other if name == 'shapes-clip' else ', and no folder of that name'}. "
                         f"Shipped: {', '.join(shipped_models())}; full scale: {', '.join(FULL_SCALE)}; tiny and "
                         f"random: {', '.join(TINY)}; or the path of a folder in diffusers' format")
    entry = FULL_SCALE[name]
    if place.type == "cpu" and not allow_cpu:
        raise ModelUnavailable(
            f"{name} is a full-scale model of {entry.gigabytes:g} GB, and {_why_not_on_a_gpu(device)}. Nothing was "
            f"loaded. In Python load_model({name!r}, {'' if device is None else f'device={str(device)!r}, '}"
            f"allow_cpu=True) runs it on the CPU all the same; load_model({_rehearsal(entry)!r}) runs the same code on "
            "a tiny random model"
        )
    return place


def _check_no_run(folder: Path) -> None:
    """Refuses a folder that `align` or `save_lora` wrote, and says how its weights are used."""
    from surveylib.diffusion.lora import adapter_file  # which imports peft, and that is slow

    if (folder / "model_index.json").exists():
        return
    if (folder / "pipeline" / "model_index.json").is_file():
        raise ValueError(f"{folder} is a run and no model; the model that it trained is {folder / 'pipeline'}")
    if adapter_file(folder) is not None:
        raise ValueError(f"{folder} is a run or an adapter and no model: `surveylib sample MODEL --adapter {folder}`, "
                         f"in Python load_lora(load_model(MODEL), {str(folder)!r}), with the model it was trained on")
    if (folder / "recipe.json").is_file():
        raise ValueError(f"{folder} is a run that is not finished, and no model: surveylib resume {folder}")


def shipped_models() -> list[str]:
    """The names of the shipped pipelines: `SHIPPED`, and further ones found beside them."""
    found = [path.parent.name for path in sorted(CHECKPOINTS.glob("*/model_index.json"))]
    return list(dict.fromkeys([*SHIPPED, *found]))


def list_models() -> list[dict[str, Any]]:
    """One row for each name that `load_model` knows.

    Keys: name, kind ("shipped", "tiny", "full scale"), ready (the weight files of all its parts are on this machine;
    their content is looked through by `load_model`), hub_id, licence, gigabytes, gated (the last four None where they
    say nothing).
    """
    empty = {"hub_id": None, "licence": None, "gigabytes": None, "gated": None}
    rows = [
        {"name": name, "kind": "shipped", "ready": _has_weights(CHECKPOINTS / name), **empty}
        for name in shipped_models()
    ]
    rows += [{"name": name, "kind": "tiny", "ready": True, **empty} for name in TINY]
    for name, entry in FULL_SCALE.items():
        facts = {key: getattr(entry, key) for key in empty}
        rows.append({"name": name, "kind": "full scale", "ready": _cached(entry), **facts})
    return rows


def check_folder(folder: Path, remedy=None) -> str:
    """Look through a folder in diffusers' format before anything is built; returns the pipeline's class name.

    Every part that ``model_index.json`` names must be there, every JSON file readable, every safetensors file whole
    (header and length).

    Raises:
        ModelUnavailable: names the file; ``remedy(path)`` says how to restore it.
        ValueError: a pipeline class without an adapter.
    """
    remedy = remedy or _save_again
    if not folder.is_dir():
        raise ModelUnavailable(f"missing: {folder}\n{remedy(folder)}")
    index = read_json(folder / "model_index.json", remedy)
    kind = str(index.get("_class_name"))
    if kind not in ADAPTERS:
        raise ValueError(f"{folder} holds a {kind}; there are adapters for {', '.join(ADAPTERS)}. "
                         "See the page 'Bring your own model'")
    for part, part_kind in _parts(index):
        _check_part(folder / part, part_kind, remedy)
    return kind


def check_safetensors(path: Path, remedy) -> None:
    """Refuse a safetensors file that is not there or not whole (header and length).

    Raises:
        ModelUnavailable: names the file; ``remedy(path)`` says how to restore it. Also for weights saved with a LoRA
            adapter attached.
    """
    if not path.is_file():
        raise ModelUnavailable(f"missing: {path}\n{remedy(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise ModelUnavailable(f"damaged: {path} ({error})\n{remedy(path)}") from error
    if any(".base_layer." in key for key in keys):  # diffusers would only warn, and start from random weights
        raise ModelUnavailable(f"{path} was saved with a LoRA adapter attached. Save the base model before adding the "
                               "adapter, and the adapter with save_lora")


def read_json(path: Path, remedy) -> dict[str, Any]:
    """A JSON file's value.

    Raises:
        ModelUnavailable: not there or not readable; names the file, and ``remedy(path)`` says how to restore it.
    """
    if not path.is_file():
        raise ModelUnavailable(f"missing: {path}\n{remedy(path)}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelUnavailable(f"damaged: {path} ({error})\n{remedy(path)}") from error


def git_checkout(path: Path) -> str:
    """How to restore a shipped file or folder: a sentence with the command."""
    root = CHECKPOINTS.parents[3]
    shown = path.relative_to(root) if path.is_relative_to(root) else path
    return f"It came with the repository. Restore it there: git checkout -- {shown.as_posix()}"


# -- inner parts -------------------------------------------------------------------------------------------------------
def _load_folder(folder: Path, name: str, device, dtype, settings: dict, remedy) -> PipelineModel:
    kind = check_folder(folder, remedy)
    own = read_json(folder / SETTINGS_FILE, remedy) if (folder / SETTINGS_FILE).exists() else {}
    _check_settings(own, str(folder / SETTINGS_FILE))
    plain = any(not path.name.endswith(".fp16.safetensors") for path in folder.glob("*/*.safetensors"))
    try:
        pipeline = _from_pretrained(folder, kind, dtype or torch.float32, None if plain else "fp16", True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelUnavailable(f"{folder} cannot be loaded: {error}\n{remedy(folder)}") from error
    model = from_pipeline(pipeline, **({"name": name} | own | settings))
    _check_complete(model, folder, remedy)
    return model.to(device)


def _check_complete(model: PipelineModel, folder: Path, remedy) -> None:
    """diffusers only warns when weights are missing from a file, and leaves them random."""
    for name, part in model.pipeline.components.items():
        missing = _missing_weights(part, folder / name) if isinstance(part, torch.nn.Module) else []
        if missing:
            raise ModelUnavailable(f"{folder / name} lacks {len(missing)} weights, among them {missing[0]}\n"
                                   f"{remedy(folder / name)}")
    weights = model.network.state_dict()
    if sum(value.numel() for value in weights.values()) > FINITE_UP_TO:
        return
    for name, part in model.pipeline.components.items():
        broken = [key for key, value in part.state_dict().items() if not value.isfinite().all()] if isinstance(
            part, torch.nn.Module) else []
        if broken:
            raise ModelUnavailable(f"damaged: {folder / name}, whose weights {broken[0]} are not finite\n"
                                   f"{remedy(folder / name)}")


def _missing_weights(part: torch.nn.Module, folder: Path) -> list[str]:
    """Names of the weights of a loaded part that no safetensors file of its folder holds, sorted."""
    files = sorted(folder.glob("*.safetensors"))
    stored: set[str] = set()
    for path in files:
        with safe_open(path, framework="pt") as file:
            stored.update(file.keys())
    weights = part.state_dict()
    held = {value.data_ptr() for key, value in weights.items() if key in stored}  # tied weights are stored once
    absent = {key for key, value in weights.items() if key not in stored and value.data_ptr() not in held}
    if not stored or not absent:
        return []
    # Older files have other names, which the part's own class translates: its loader has the last word.
    plain = any(not path.name.endswith(".fp16.safetensors") for path in files)
    with no_progress_bars():
        _, found = type(part).from_pretrained(
            str(folder), variant=None if plain else "fp16", output_loading_info=True, local_files_only=True)
    return sorted(found["missing_keys"])


def _load_full_scale(name: str, device, dtype, download: bool, settings: dict) -> PipelineModel:
    entry = FULL_SCALE[name]
    kind = dtype or (torch.float32 if device.type == "cpu" else DTYPES[entry.dtype])
    try:
        pipeline = _from_pretrained(entry.hub_id, entry.pipeline, kind, entry.variant, not download)
    except Exception as error:
        raise ModelUnavailable(_how_to_get(name, entry, error)) from error
    return from_pipeline(pipeline, **({"name": name} | entry.settings | settings)).to(device)


def _from_pretrained(source, kind: str, dtype: torch.dtype, variant: str | None, local: bool) -> DiffusionPipeline:
    options: dict[str, Any] = {"dtype": dtype, "variant": variant, "local_files_only": local}
    if kind == "StableDiffusionPipeline":
        options |= {"safety_checker": None, "requires_safety_checker": False}
    if kind == "StableDiffusionXLPipeline":
        options |= {"add_watermarker": False}
    with no_progress_bars():
        pipeline = getattr(diffusers, kind).from_pretrained(str(source), **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _how_to_get(name: str, entry: FullScale, error: Exception) -> str:
    from huggingface_hub import constants

    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    lines = [
        f"{name} could not be loaded: {reason}",
        f"It is {entry.hub_id} on the Hugging Face hub, {entry.gigabytes:g} GB, licence: {entry.licence}.",
        f"Download: {entry.download_command}",
        f"Looked for in {constants.HF_HUB_CACHE} (set HF_HOME to have it elsewhere; if a file there is damaged, add "
        "--force-download to the command).",
    ]
    if entry.gated:
        lines.append(f"It is gated: accept the licence at https://huggingface.co/{entry.hub_id}, then `hf auth login`.")
    if constants.HF_HUB_OFFLINE:
        lines.append("HF_HUB_OFFLINE is set, so nothing is fetched; unset it on a machine with a network.")
    lines.append(f"A copy in a folder loads too: load_model('path/to/folder'). To rehearse: {_rehearsal(entry)!r}.")
    return "\n".join(lines)


def _rehearsal(entry: FullScale) -> str:
    """The tiny model of the same class and kind."""
    tiny = {"StableDiffusionPipeline": "tiny-sd", "StableDiffusionXLPipeline": "tiny-sdxl",
            "StableDiffusion3Pipeline": "tiny-sd3", "FluxPipeline": "tiny-flux"}[entry.pipeline]
    if entry.hub_id.endswith("turbo"):
        return f"{tiny}-turbo"
    return f"{tiny}-schnell" if entry.hub_id.endswith("schnell") else tiny


def _tiny_settings(name: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"resolution": RESOLUTION}
    if name.startswith(("tiny-sd3", "tiny-flux")):
        settings["max_sequence_length"] = 32
    if name.endswith(("turbo", "schnell")):
        settings |= {"default_guidance": 1.0, "default_steps": 4}
    return settings


def _why_not_on_a_gpu(device: str | torch.device | None) -> str:
    if not torch.accelerator.is_available():
        return "there is no GPU to run it on"
    return f"device {str(device)!r} was asked for although there is a GPU"


def _cached(entry: FullScale) -> bool:
    """Whether the hub's local cache holds what `load_model` reads of a published model."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(entry.hub_id, "model_index.json")
    return isinstance(path, str) and _has_weights(Path(path).parent, entry.variant)


def _has_weights(folder: Path, variant: str | None = None) -> bool:
    """Whether the weight files of each part that ``model_index.json`` names are there; their content is not read."""
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        return all(_has_part(folder / part, variant) for part, kind in _parts(index) if not _is_plain(kind))
    except (OSError, ValueError):
        return False


def _has_part(folder: Path, variant: str | None) -> bool:
    listed = sorted(folder.glob(f"*.safetensors.index.{variant}.json" if variant else "*.safetensors.index.json"))
    if listed:
        names = set(json.loads(listed[0].read_text(encoding="utf-8")).get("weight_map", {}).values())
        return bool(names) and all((folder / name).is_file() for name in names)
    found = folder.glob(f"*.{variant}.safetensors" if variant else "*.safetensors")
    return any(path.is_file() and "-of-" not in path.name for path in found)  # shards need their list


def _parts(index: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, class) of the parts that ``model_index.json`` names and that are loaded."""
    for part, value in index.items():
        if isinstance(value, list) and value[1] is not None and part != "safety_checker":  # which is not loaded
            yield part, value[1]


def _is_plain(kind: str) -> bool:
    """Whether a part of this class has no weights."""
    return kind.endswith("Scheduler") or any(word in kind for word in ("Tokenizer", "Processor", "Extractor"))


def _shipped_vocabulary() -> frozenset[str] | None:
    """The words that the shipped models have seen, where the list lies beside them."""
    path = CHECKPOINTS / VOCABULARY_FILE
    return frozenset(read_json(path, git_checkout)["words"]) if path.is_file() else None


def _check_part(folder: Path, kind: str, remedy) -> None:
    """One part of a pipeline: its configuration and its weights."""
    if not folder.is_dir():
        raise ModelUnavailable(f"missing: {folder}, the folder of {kind}\n{remedy(folder)}")
    for path in sorted(folder.glob("*.json")):
        read_json(path, remedy)
    if "Tokenizer" in kind and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelUnavailable(f"missing: {folder}, the vocabulary of {kind} (one of {', '.join(TOKENIZER_FILES)})\n"
                               f"{remedy(folder)}")  # transformers would build one without words
    if kind.endswith("Scheduler"):
        read_json(folder / "scheduler_config.json", remedy)
    if _is_plain(kind):
        return
    read_json(folder / "config.json", remedy)
    weights = [folder / name for name in _weight_names(folder, remedy)]
    for path in weights:
        if not path.is_file():
            raise ModelUnavailable(f"missing: {path}, weights of {kind}\n{remedy(path)}")
        if path.suffix == ".safetensors":
            check_safetensors(path, remedy)


def _weight_names(folder: Path, remedy) -> list[str]:
    """The weight files a part needs; the usual name if there is none."""
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        return sorted(set(read_json(index, remedy).get("weight_map", {}).values()))
    found = sorted(path.name for suffix in ("safetensors", "bin") for path in folder.glob(f"*.{suffix}"))
    own = "model.safetensors" if folder.name.startswith("text_encoder") else "diffusion_pytorch_model.safetensors"
    return found or [own]


def _save_again(path: Path) -> str:
    return "Copy it again from where the folder came from, or write the folder anew: pipeline.save_pretrained(folder)"


def _check_settings(settings: dict[str, Any], where: str) -> None:
    unknown = set(settings) - set(SETTINGS)
    if unknown:
        raise ValueError(f"{where}: unknown setting {sorted(unknown)[0]!r}; there are {', '.join(SETTINGS)}")
    settings = {key: value for key, value in settings.items() if value is not None}
    for key in ("default_steps", "max_sequence_length"):
        if not _is_count(settings.get(key, 1)):
            raise ValueError(f"{where}: {key} = {settings[key]!r}; allowed: a whole number, 1 or more")
    guidance = settings.get("default_guidance", 1.0)
    if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance < inf:
        raise ValueError(f"{where}: default_guidance = {guidance!r}; allowed: a finite number, 0 or more")
    size = settings.get("resolution", 1)
    if not _is_count(size) and not (isinstance(size, (tuple, list)) and len(size) == 2 and all(map(_is_count, size))):
        raise ValueError(f"{where}: resolution = {size!r}; allowed: pixels, or (height, width), each 1 or more")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_device(device: str | torch.device | None, small: bool) -> torch.device:
    gpu = torch.accelerator.is_available()
    if device is None:
        return torch.device(torch.accelerator.current_accelerator().type if gpu and not small else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use 'cpu', 'cuda', 'cuda:0', 'mps'") from error
    if place.type == "cpu":  # of which there is one, also where accelerate numbers it
        return torch.device("cpu")
    if not (gpu and torch.accelerator.current_accelerator().type == place.type):
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees no such device here; use 'cpu'")
    if place.index is not None and place.index >= torch.accelerator.device_count():
        raise ValueError(f"device {str(device)!r}: torch sees {torch.accelerator.device_count()} such devices")
    return place


def _check_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; there are {', '.join(DTYPES)}")
    return DTYPES[dtype]


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """No loading bars of diffusers and transformers inside the block: they are noise in a rendered page."""
    libraries = (diffusers.utils.logging, transformers.utils.logging)
    on = [library for library in libraries if library.is_progress_bar_enabled()]
    for library in on:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in on:
            library.enable_progress_bar()
