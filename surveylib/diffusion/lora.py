"""Low-rank adaptation (LoRA, arXiv 2106.09685) of a model's network, through peft.

Each adapted matrix computes W x + (alpha / r) B A x with A (r, in) drawn at random and B (out, r) zero, so that an
untrained adapter changes nothing. The base weights are frozen and are the reference: ``model.reference()`` switches the
adapter off.

What `save_lora` writes loads in plain diffusers by ``pipeline.load_lora_weights(folder)``. alpha is not among the
weights: it travels in the adapter metadata. Without it diffusers takes alpha = r, and an adapter trained with
alpha = 2r loads at half its strength, with no error.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from surveylib.diffusion.weights import gathered, lora_layers

POLICY = "policy"  # the adapter's name inside peft
WEIGHT_FILE = "pytorch_lora_weights.safetensors"

_JOINT_ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
)
# The attention projections: of the UNets as in ddpo-pytorch, of SD3.5 as in flow_grpo and DiffusionNFT.
TARGETS: dict[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("to_q", "to_k", "to_v", "to_out.0"),
    "SD3Transformer2DModel": _JOINT_ATTENTION,
    "FluxTransformer2DModel": _JOINT_ATTENTION,
}


def add_lora(
    model,
    rank: int = 16,
    alpha: float | None = None,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Attach a LoRA adapter to ``model.network``, freeze everything else, and make the adapter the policy.

    Args:
        model: a DiffusionModel; its ``network`` gets the adapter.
        rank: r, the rank of the update, at least 1.
        alpha: the update is scaled by alpha / rank; None means alpha = rank.
        targets: endings of the names of the adapted modules; None takes `TARGETS` for the network's class.
        seed: seed of the random matrices A. The global random state is left as it was.

    The adapter is kept in float32 also when the network is in half precision. Dropout is 0, so that two passes with the
    same weights agree.

    Raises ValueError if there is an adapter already, if rank or alpha are not positive, or if no module fits `targets`.
    """
    network = model.network
    if lora_layers(network):
        raise ValueError("the network has an adapter already; load the model anew, or train the one that is there")
    alpha = rank if alpha is None else alpha
    if rank < 1 or alpha <= 0:
        raise ValueError(f"rank must be at least 1 and alpha positive, got rank {rank}, alpha {alpha}")
    targets = _check_targets(network, targets)
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=0.0, init_lora_weights="gaussian", target_modules=list(targets)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        _inject(network, config)  # peft freezes all that is not the adapter
    model.snapshots.clear()  # copies of the full weights do not fit an adapter
    for parameter in model.trainable_parameters():
        parameter.data = parameter.data.float()


def _inject(network: nn.Module, config: LoraConfig) -> None:
    if hasattr(network, "add_adapter"):  # diffusers networks keep their own record of adapters
        network.add_adapter(config, adapter_name=POLICY)
    else:
        inject_adapter_in_model(config, network, adapter_name=POLICY)


def _check_targets(network: nn.Module, targets: Sequence[str] | None) -> Sequence[str]:
    kind = type(network).__name__
    if targets is None and kind not in TARGETS:
        raise ValueError(f"no default LoRA targets for {kind}; pass targets=[endings of module names]; "
                         f"defaults exist for {', '.join(TARGETS)}")
    targets = TARGETS[kind] if targets is None else targets
    names = [name for name, _ in network.named_modules() if name]
    if not any(name == t or name.endswith(f".{t}") for name in names for t in targets):
        raise ValueError(f"no module of {kind} ends in any of {list(targets)}; its last modules are {names[-5:]}")
    return targets


def save_lora(model, folder: str | Path, write: bool = True) -> Path:
    """Write the adapter to `folder` in diffusers' format, with its metadata, and return the file's path.

    In plain diffusers: ``pipeline.load_lora_weights(folder)``. Where weights are sharded over processes all must call;
    one of them writes.

    Raises ValueError when the model has no adapter or no pipeline to save through.
    """
    if not lora_layers(model.network):
        raise ValueError("the network has no adapter to save; add_lora(model) attaches one")
    part = _component(model)
    layers = get_peft_model_state_dict(model.network, adapter_name=POLICY)
    metadata = {name: sorted(value) if isinstance(value, set) else value  # sets have another order in each process
                for name, value in model.network.peft_config[POLICY].to_dict().items()}
    model.pipeline.save_lora_weights(
        folder,
        is_main_process=write,
        **{
            f"{part}_lora_layers": {name: gathered(value) for name, value in layers.items()},
            f"{part}_lora_adapter_metadata": metadata,
        },
    )
    return Path(folder) / WEIGHT_FILE


def load_lora(model, folder: str | Path, trainable: bool = False) -> None:
    """Load an adapter saved by `save_lora` (or by diffusers) into `model`, as its policy.

    `folder` holds the file, or is that of a run, which has it in ``adapter/``; or it is the file. The base weights are
    frozen; the adapter's are too unless `trainable`. Warns when the file carries no alpha.

    Raises FileNotFoundError when there is no such file, ValueError when it cannot be read, does not fit the network, or
    the network has an adapter already.
    """
    if lora_layers(model.network):
        raise ValueError("the network has an adapter already; load the model anew before loading another")
    part = _component(model)
    path = adapter_file(folder) or (Path(folder) / WEIGHT_FILE if Path(folder).is_dir() else Path(folder))
    if not path.is_file():
        raise FileNotFoundError(f"no LoRA weights at {path}; save_lora(model, folder) writes {WEIGHT_FILE}")
    keys, metadata = _read(path)
    if not any(key.endswith("alpha") for key in [*(metadata or {}), *keys]):
        warnings.warn(
            f"{path} carries no alpha: it is read as alpha = rank, which is wrong if it was trained otherwise",
            stacklevel=2,
        )
    foreign = [key for key in keys if key.split(".")[0] != part]
    if foreign:
        raise ValueError(f"{path} was trained for another kind of network: {foreign[0]} does not begin with {part!r}")
    _check_fit(path, keys, part, model.network)
    try:
        with _without_notes():
            model.pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=POLICY)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit {type(model.network).__name__}: {error}") from error
    model.network.requires_grad_(False)
    model.snapshots.clear()
    for name, parameter in model.network.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(trainable)


def adapter_file(folder: str | Path) -> Path | None:
    """The LoRA weights in a folder, its own or, of a run, those in ``adapter/``; None where there are none."""
    places = (Path(folder) / WEIGHT_FILE, Path(folder) / "adapter" / WEIGHT_FILE)
    return next((path for path in places if path.is_file()), None)


def _check_fit(path: Path, shapes: dict[str, tuple[int, ...]], part: str, network: nn.Module) -> None:
    """Refuses an adapter of another network in one line: peft would list every weight. Files under older names pass,
    and so do layers of kinds that are not known here."""
    modules = dict(network.named_modules())
    for key, shape in shapes.items():
        name, _, matrix = key.removeprefix(f"{part}.").removesuffix(".weight").rpartition(".")
        if matrix not in ("lora_A", "lora_B"):
            continue
        if name not in modules:
            raise ValueError(f"{path} does not fit {type(network).__name__}: it adapts {name}, which this network has "
                             "not: give the model it was trained on")
        weight = getattr(modules[name], "weight", None)
        side = 1 if matrix == "lora_A" else 0
        if isinstance(weight, torch.Tensor) and weight.ndim > 1 and weight.shape[side] != shape[side]:
            raise ValueError(f"{path} does not fit {type(network).__name__}: the adapter fits {shape[side]} channels "
                             f"at {name}, this network has {weight.shape[side]}: give the model it was trained on")


@contextmanager
def _without_notes() -> Iterator[None]:
    """diffusers warns of each text encoder that an adapter of the network does not change: there is none that does."""
    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated")

    loggers = [logging.getLogger(f"diffusers.loaders.{name}") for name in ("lora_base", "lora_pipeline", "peft")]
    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)


def _read(path: Path) -> tuple[dict[str, tuple[int, ...]], dict | None]:
    """The weights' names and shapes and the metadata of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("lora_adapter_metadata")
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return shapes, json.loads(metadata) if metadata else None
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}); save or copy it again") from error


@contextmanager
def lora_strength(model, strength: float) -> Iterator[None]:
    """Compute with the adapter's update multiplied by `strength`: 0 is the reference, 1 the policy.

    Raises ValueError when the model has no adapter.
    """
    layers = lora_layers(model.network)
    if not layers:
        raise ValueError("the network has no adapter whose strength could be changed; add_lora(model) attaches one")
    kept = [dict(layer.scaling) for layer in layers]
    for layer in layers:
        for name in layer.scaling:
            layer.scaling[name] *= strength
    try:
        yield
    finally:
        for layer, scaling in zip(layers, kept):
            layer.scaling.update(scaling)


def _component(model) -> str:
    """The pipeline's name for the network: ``unet`` or ``transformer``."""
    pipeline = getattr(model, "pipeline", None)
    if not hasattr(pipeline, "save_lora_weights"):
        raise ValueError(f"{type(model).__name__} has no diffusers pipeline with LoRA files (save_lora_weights). "
                         "Save the trainable parameters instead: "
                         "safetensors.torch.save_file(model.named_trainable_parameters(), path)")
    return "unet" if getattr(pipeline, "unet", None) is not None else "transformer"
