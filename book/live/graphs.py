"""The model as ONNX graphs without weights: text encoder, network, decoder, and the reward model as verifier.

Nothing of the model is written a second time. The graphs are traced from the library's own calls, and the sampler is a
table: every prediction and every deterministic step is linear in the noisy sample and the network's output, so that
five numbers a step, probed from the library, say it all (`sampler_table`).
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from surveylib.diffusion.dynamics import DDIM
from surveylib.diffusion.predictions import Prediction

OPSET = 20
LARGEST_BATCH = 64
VERIFIED = 4  # pictures that the verifier scores at once; its code counts its texts, which fixes the batch
LARGEST_HALF = 65504  # the blobs hold half precision
SMALL_TABLE = 64
SMALLEST = 8  # fewer numbers are arguments of an operation (a scale of a resize), which must be in the graph itself


@dataclass(frozen=True, eq=False)
class Graph:
    """structure: a serialised ONNX model whose weights are external. weights: name -> float32 array, in blob order."""

    structure: bytes
    weights: dict[str, np.ndarray]


class TextEncoder(nn.Module):
    """Token numbers (B, L) int32 to the states that the network is conditioned on, (B, L, W)."""

    def __init__(self, model: Any):
        super().__init__()
        self.encoder = model.pipeline.text_encoder

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L, W)."""
        return self.encoder(ids.long())[0]


class Network(nn.Module):
    """x (B, C, H, W), t (B,) float32 as the network is fed it, h (B, L, W) to the network's output."""

    def __init__(self, model: Any):
        super().__init__()
        self.network = model.network

    def forward(self, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
        """(B, C, H, W)."""
        return self.network(x, t, encoder_hidden_states=h, return_dict=False)[0]


class Decoder(nn.Module):
    """Latents (B, C, H, W) to pictures (B, 3, 8 H, 8 W), not clamped."""

    def __init__(self, model: Any):
        super().__init__()
        self.vae, self.model = model.vae, [model]  # in a list: a DiffusionModel is no module

    def forward(self, z: Tensor) -> Tensor:
        """(B, 3, 8 H, 8 W)."""
        return self.model[0].decode(z)


class Verifier(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] and token numbers (B, L) int32 to rewards (B,)."""

    def __init__(self, reward: Any):
        super().__init__()
        self.model = reward.model
        self.model.trunk.tokens = lambda ids: ids  # the page has the tokens already

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        """(B,)."""
        texts = self.model.prepare_texts(ids.long())
        return self.model.reward_of(self.model(self.model.prepare_images(images), None, *texts)[0])


@contextmanager
def quiet():
    """The exporter without its running commentary, attention by its plain path."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "torch.export", "onnx_ir")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def export(module: nn.Module, inputs: dict[str, Tensor], output: str, path: str, free: bool = True) -> Graph:
    """The graph of a module.

    Args:
        inputs: example of each input by name, batch first. output: name of the output.
        path: by which the graph asks for its weights. free: any batch; else the batch of the example.
    """
    import onnxslim

    batch = {0: torch.export.Dim("b", min=1, max=LARGEST_BATCH)}
    shapes = tuple(batch for _ in inputs) if free else None
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(), tuple(inputs.values()), dynamo=True, optimize=True, opset_version=OPSET, verbose=False,
            input_names=list(inputs), output_names=[output], dynamic_shapes=shapes,
        )  # fmt: skip
        model = onnxslim.slim(program.model_proto)
    return split(model, path)


def stays(value: np.ndarray) -> bool:
    """Whether numbers belong into the graph: arguments of operations, masks, and small tables that half precision would
    round, such as the frequencies of the time embedding (rounded, they turn by half a radian at t = 900)."""
    if value.size < SMALLEST or np.abs(value).max() > LARGEST_HALF:
        return True
    return value.size <= SMALL_TABLE and bool((value.astype(np.float16).astype(np.float32) != value).any())


def split(model: Any, path: str) -> Graph:
    """Structure and weights apart; names of values, doc strings and metadata of the exporter are dropped."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    del graph.value_info[:], model.metadata_props[:], graph.metadata_props[:]
    for item in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    weights, offset = {}, 0
    for item in graph.initializer:
        value = numpy_helper.to_array(item)
        if item.data_type != TensorProto.FLOAT or stays(value):
            continue
        weights[item.name] = value.copy()
        size = weights[item.name].nbytes
        item.ClearField("raw_data")
        item.ClearField("float_data")
        item.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path), ("offset", str(offset)), ("length", str(size))):
            item.external_data.add(key=key, value=value)
        offset += size
    return Graph(model.SerializeToString(), weights)


def all_graphs(model: Any, reward: Any) -> dict[str, Graph]:
    """The four graphs by name.

    Args:
        model: a PipelineModel with a UNet. reward: a LearnedReward.
    """
    length = model.pipeline.tokenizer.model_max_length
    width = model.network.config.cross_attention_dim
    height, breadth = model.resolution
    ids = torch.zeros(2, length, dtype=torch.int32)
    ids[:, 1] = 1
    room = reward.model.trunk.clip.config.text_config.max_position_embeddings
    tokens = torch.zeros(VERIFIED, room, dtype=torch.int32)
    x = torch.randn(2, *model.latent_shape)
    return {
        "text": export(TextEncoder(model), {"ids": ids}, "h", "text"),
        "network": export(Network(model), {"x": x, "t": torch.tensor([9.0, 5.0]), "h": torch.randn(2, length, width)},
                          "out", "network"),
        "decoder": export(Decoder(model), {"z": x}, "image", "decoder"),
        "verifier": export(Verifier(reward), {"images": torch.rand(VERIFIED, 3, height, breadth), "ids": tokens},
                           "score", "verifier", free=False),
    }  # fmt: skip


def sampler_table(model: Any, steps: int) -> list[list[float]]:
    """One row a step, [t, u, v, p, q]: the network sees t; x0 = u x + v out; the next sample is p x + q out.

    Probed with x = 1, out = 0 and x = 0, out = 1, so that it holds for any schedule and kind of prediction.
    """
    rows, grid = [], model.schedule.grid(steps)
    one, nil = torch.ones(1, 1, 1, 1, dtype=torch.float64), torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    for t, s in pairwise(grid):
        pair = [Prediction(x, t, out, model.prediction_kind, model.schedule) for x, out in ((one, nil), (nil, one))]
        clean = [float(p.x0) for p in pair]
        following = [float(DDIM(0.0).transition(p, s).mean) for p in pair]
        rows.append([float(model.schedule.network_time(t)), *clean, *following])
    return rows


def located(weights: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> dict[str, tuple[str, bool]]:
    """For each wanted matrix the graph's name of it and whether the graph holds it transposed.

    Args:
        weights: of the graph. wanted: module name -> (out, in) float32.

    Raises:
        ValueError: a matrix that the graph does not hold as it is (the exporter fused it with something).
    """
    known: dict[bytes, str] = {}
    for name, value in weights.items():
        known.setdefault(str(value.shape).encode() + value.tobytes(), name)
    found = {}
    for module, value in wanted.items():
        for transposed, form in ((False, value), (True, np.ascontiguousarray(value.T))):
            name = known.get(str(form.shape).encode() + form.tobytes())
            if name is not None:
                found[module] = (name, transposed)
                break
        else:
            raise ValueError(f"the graph holds no weight equal to {module} {value.shape}: the exporter changed it, and "
                             "an adapter for it cannot be merged in the page")
    return found

