"""Build "Try it": graphs, weights, adapters and precomputed pictures into book/_static/live (never committed).

    PYTHONPATH=book python -m live.build

Each part is made again only when what it is made of changed. Where onnx or onnxruntime-web cannot be had, the page gets
the precomputed pictures alone, and says so. Exit status 0 in both cases.
"""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import logging
from PIL import Image

from live import packing
from live.adapters import ADAPTERS, Adapter, shipped
from live.describe import FIXED_SEEDS, STEPS, STILL_PROMPT, STRENGTHS, describe
from live.runtime import RuntimeMissing, runtime
from surveylib.diffusion.lora import load_lora, lora_strength
from surveylib.diffusion.rollout import sample
from surveylib.diffusion.zoo import CHECKPOINTS, load_model
from surveylib.figures.sheet import sheet
from surveylib.rewards.learned.store import CHECKPOINTS as REWARDS
from surveylib.rewards.registry import load_reward

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "_static" / "live"
MODEL, REWARD, TRUNK = "shapes-sd", "shapes-pickscore", "shapes-clip"
EXPORTERS = ("torch", "onnx", "onnxscript", "onnxslim")
FORMATS = {"text": "halves", "network": "halves", "decoder": "halves", "verifier": "rows"}
STAMP = "stamp.json"
WORKER = ("blobs.js", "engine.js", "worker.js")


class Parts:
    """Parts of the output, each with the hash of what it was made of; `make` skips what still holds."""

    def __init__(self, folder: Path):
        self.folder, self.file = folder, folder / STAMP
        folder.mkdir(parents=True, exist_ok=True)
        self.known = json.loads(self.file.read_text()) if self.file.is_file() else {}

    def make(self, name: str, key: str, maker: Callable[[], Any]) -> Any:
        """The JSON value of a part, from the last build if the key is the same."""
        if self.known.get(name, {}).get("key") != key:
            self.known[name] = {"key": key, "value": maker()}
            self.file.write_text(json.dumps(self.known))
        return self.known[name]["value"]


def key_of(*sources: Path | str) -> str:
    """Hash of files, of all files of folders, and of texts."""
    digest = hashlib.sha256()
    for source in sources:
        if isinstance(source, str):
            digest.update(source.encode() + b"\0")
            continue
        files = sorted(f for f in source.rglob("*") if f.is_file()) if source.is_dir() else [source]
        for file in files:
            if file.suffix in (".safetensors", ".json", ".py", ".js") and file.name != "scores.json":
                digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def model_key() -> str:
    """Of the model's own files."""
    return key_of(CHECKPOINTS / MODEL)


def graphs_key() -> str:
    """Of model, reward, exporter and its packages."""
    versions = [f"{name} {metadata.version(name)}" for name in EXPORTERS]
    return key_of(model_key(), CHECKPOINTS / TRUNK, REWARDS / REWARD, HERE / "graphs.py", HERE / "packing.py",
                  *versions)


def missing_packages() -> str:
    """Why nothing can be exported here, or an empty text."""
    absent = [name for name in EXPORTERS if not find_spec(name)]
    return f"the Python packages {', '.join(absent)} are not installed" if absent else ""


def write_graphs(folder: Path) -> dict[str, Any]:
    """Export and pack all four graphs; returns their entries in the manifest, with the places of adapted matrices."""
    from live.graphs import all_graphs, located

    model = load_model(MODEL)
    entries = {}
    for name, graph in all_graphs(model, load_reward(REWARD)).items():
        pack = packing.row_blob if FORMATS[name] == "rows" else packing.half_blob
        data, weights = pack(graph.weights)
        entries[name] = {"structure": len(graph.structure), "format": FORMATS[name], "weights": weights,
                         "blob": packing.write_blob(folder, name, graph.structure + data)}
        if name == "network":
            matrices = {n: p.detach().numpy() for n, p in model.network.named_parameters() if p.ndim == 2}
            entries[name]["places"] = located(graph.weights, matrices)
    return entries


def write_runtime(folder: Path, source: Path) -> dict[str, Any]:
    """Pack onnxruntime-web: its script, its loader, its code."""
    return {key: packing.write_blob(folder, f"runtime-{key}", (source / name).read_bytes())
            for key, name in (("script", "ort.wasm.min.js"), ("loader", "ort-wasm-simd-threaded.mjs"),
                              ("code", "ort-wasm-simd-threaded.wasm"))}


def write_adapter(folder: Path, adapter: Adapter, places: dict[str, Any]) -> dict[str, Any]:
    """Pack one adapter: per matrix A (rank, in), then B (out, rank) with its scale alpha / rank multiplied in."""
    model = load_model(MODEL)
    load_lora(model, adapter.folder)
    matrices, values = [], []
    for name, layer in model.network.named_modules():
        if not hasattr(layer, "lora_A") or not len(layer.lora_A):
            continue
        (key,) = layer.lora_A
        a, b = layer.lora_A[key].weight.detach(), layer.lora_B[key].weight.detach() * layer.scaling[key]
        if f"{name}.weight" not in places:
            raise ValueError(f"the adapter {adapter.name} changes {name}, which the graph does not hold as a matrix")
        weight, transposed = places[f"{name}.weight"]
        matrices.append({"weight": weight, "transposed": transposed, "out": len(b), "inner": a.shape[1],
                         "rank": len(a)})
        values += [a.numpy().ravel(), b.numpy().ravel()]
    blob = packing.write_blob(folder, f"adapter-{adapter.name}", packing.planes(np.concatenate(values)))
    return {"matrices": matrices, "blob": blob}


@torch.no_grad()
def pictures(adapter: Adapter, noise: torch.Tensor) -> torch.Tensor:
    """(strengths, seeds, 3, H, W) pictures of the still prompt with an adapter."""
    model = load_model(MODEL)
    load_lora(model, adapter.folder)
    condition, drawn = model.encode([STILL_PROMPT] * len(noise)), []
    for strength in STRENGTHS:
        with lora_strength(model, strength):
            latents = sample(model, condition, steps=STEPS[0], x=noise)
        drawn.append(model.decode(latents, clamp=True))
    return torch.stack(drawn)


def write_stills(folder: Path, adapters: list[Adapter], noise: torch.Tensor) -> dict[str, str]:
    """One sprite for each adapter (rows: strengths, columns: seeds) and one picture of all, for print."""
    shown, captions, files = [], [], {}
    for adapter in adapters:
        drawn = pictures(adapter, noise)
        rows, columns, _, height, width = drawn.shape
        grid = drawn.permute(0, 3, 1, 4, 2).reshape(rows * height, columns * width, 3)
        files[adapter.name] = f"still-{adapter.name}.png"
        image = Image.fromarray((grid * 255).round().byte().numpy())
        image.quantize(128, dither=Image.Dither.NONE).save(folder / files[adapter.name], optimize=True)
        shown += list(drawn[:, 0])
        captions += [adapter.label, *(f"strength {strength:g}" for strength in STRENGTHS[1:])]
    (folder / "still.png").write_bytes(sheet(shown, captions, columns=len(STRENGTHS), colours=240))
    return files


def fixed_noise() -> torch.Tensor:
    """(seeds, C, H, W): torch's own noise of the page's fixed seeds."""
    model = load_model(MODEL)
    return torch.cat([model.initial_noise(1, torch.Generator().manual_seed(seed)) for seed in FIXED_SEEDS])


def build(folder: Path = OUT, adapters_folder: Path = ADAPTERS) -> dict[str, Any]:
    """Write everything; returns the manifest. ``manifest["missing"]`` says why there is no model, or is empty."""
    parts, adapters, noise = Parts(folder), shipped(adapters_folder), fixed_noise()
    manifest = {**describe(load_model(MODEL), load_reward(REWARD)), "missing": missing_packages(), "adapters": [],
                "noise": [[float(f"{v:.9g}") for v in row.ravel().tolist()] for row in noise]}  # exact in float32
    keys = [key_of(adapter.folder) for adapter in adapters]
    manifest["stills"] = parts.make("stills", key_of(model_key(), *keys, HERE / "build.py", HERE / "describe.py"),
                                    lambda: write_stills(folder, adapters, noise))
    try:
        source = runtime()
        manifest["runtime"] = parts.make("runtime", key_of(source), lambda: write_runtime(folder, source))
    except RuntimeMissing as error:
        manifest["missing"] = manifest["missing"] or str(error)
    if not manifest["missing"]:
        key = graphs_key()
        manifest["graphs"] = copy.deepcopy(parts.make("graphs", key, lambda: write_graphs(folder)))
        places = manifest["graphs"]["network"].pop("places")  # the page needs those of its adapters only
    for adapter, own in zip(adapters, keys):
        entry = {} if manifest["missing"] else parts.make(
            f"adapter-{adapter.name}", key_of(own, key), lambda a=adapter: write_adapter(folder, a, places))
        manifest["adapters"].append({**adapter.card, "name": adapter.name, **entry})
    write_page(folder, manifest)
    remove_stale(folder, {adapter.name for adapter in adapters})
    return manifest


def remove_stale(folder: Path, names: set[str]) -> None:
    """Delete files of adapters that are gone; everything here would be copied into the book."""
    for file in [*folder.glob("adapter-*-*.js"), *folder.glob("still-*.png")]:
        kind, _, name = file.stem.partition("-")
        if (name.rpartition("-")[0] if kind == "adapter" else name) not in names:
            file.unlink()


def write_page(folder: Path, manifest: dict[str, Any]) -> None:
    """The page itself; the worker's own scripts as one text, since a page from disk cannot read its neighbours."""
    for file in sorted((HERE / "page").iterdir()):
        shutil.copy(file, folder / file.name)
    source = "\n".join((HERE / "page" / name).read_text(encoding="utf-8") for name in WORKER)
    packing.write_script(folder / "source.js", "source", source)
    packing.write_script(folder / "manifest.js", "manifest", manifest)


def bytes_of(manifest: dict[str, Any]) -> dict[str, int]:
    """Compressed bytes by what the reader loads: first, with the verifier, with each adapter."""
    if manifest["missing"]:
        return {}
    graphs = {name: entry["blob"]["packed"] for name, entry in manifest["graphs"].items()}
    return {"runtime": sum(blob["packed"] for blob in manifest["runtime"].values()), **graphs,
            "adapters": sum(entry["blob"]["packed"] for entry in manifest["adapters"]),
            "manifest": len(gzip.compress(json.dumps(manifest).encode()))}


def main() -> None:
    """Build and say what came of it."""
    logging.set_verbosity_error()  # diffusers remarks on every adapter that it has no part for the text encoder
    manifest = build()
    if manifest["missing"]:
        print(f"live: {manifest['missing']}.\nThe page \"Try it\" shows precomputed pictures only.")
        return
    sizes = bytes_of(manifest)
    print(f"live: {sum(sizes.values()) / 1e6:.1f} MB compressed ("
          + ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items()) + ")")


if __name__ == "__main__":
    main()
