"""Pre-train `shapes-clip`: a small CLIPModel, by contrast of pictures and captions (arXiv 2103.00020).

Beside the captions of the batch, every picture is contrasted with captions of its own in which one attribute was
changed (hard negatives, as in NegCLIP, arXiv 2210.01936): without them colours and places need not be bound to things.

Contrast alone teaches colours in a thousand steps and shapes hardly at all: 8-pixel patches say little each. Linear
heads (`attributes`) that are dropped at the end read every patch and the scene off the vision tower, and the caption
off the text tower, beside the contrast; their weight falls to zero by a cosine over the run. Scene and caption are read
into one table, shape by shape: count, colour, size, and where the shape stands to the other. The text tower learns that
table early; relations stayed at chance all the same, until the vision tower was also asked for each shape's centre.
Captions are those of `make_labelled_pool`, which say what was drawn. `--init FOLDER` goes on from a model with fresh
heads and optimiser.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPVisionConfig

from surveylib.worlds.shapes.data import MIXTURE, change_one
from surveylib.worlds.shapes.pretrain.attributes import (
    BindingHead,
    CaptionHeads,
    PictureHeads,
    attribute_targets,
    said_labels,
)
from surveylib.worlds.shapes.pretrain.latents import rows
from surveylib.worlds.shapes.pretrain.loop import LoopConfig, deciding, train
from surveylib.worlds.shapes.pretrain.pool import make_labelled_pool
from surveylib.worlds.shapes.pretrain.text import build_tokenizer, text_config, token_ids
from surveylib.worlds.shapes.prompts import parse, realise

CONFIG = LoopConfig(steps=5000, batch=64, lr=1e-3, warmup=200, ema=0.998, decay=0.05)
POOL, POOL_SEED = 16_000, 3
# Shares of the caption categories of --relations: order and binding are what contrast learns last.
RELATIONAL = MIXTURE | {"position": 0.40, "colour attribution": 0.20}
NEGATIVES = 5  # hard negatives a picture
HARD = ("swap", "relation", "shape", "size", "count", "colour")  # kinds that are asked for in turn
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def build(tokenizer) -> CLIPModel:
    """The architecture, with random weights: 8 x 8 patches, width 128."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=128,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        hidden_act="gelu",
    )
    text = text_config(tokenizer, width=128, layers=3)
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def build_processor(tokenizer) -> CLIPProcessor:
    """Resizes to 64 pixels, maps [0, 1] to [-1, 1]."""
    image = CLIPImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, image_mean=list(MEAN), image_std=list(STD)
    )
    return CLIPProcessor(image_processor=image, tokenizer=tokenizer)


def hard_negatives(caption: str, n: int, rng: np.random.Generator) -> list[str]:
    """`n` captions in which one attribute of `caption` is changed: each kind of `HARD` that it has in turn, the rest at
    random."""
    spec = parse(caption)
    found = [realise(other, rng) for kind in HARD if (other := change_one(spec, rng, kind)) is not None][:n]
    while len(found) < n:
        found.append(realise(change_one(spec, rng), rng))
    return found


def embed(model: CLIPModel, pixels: Tensor | None = None, tokens: Tensor | None = None) -> Tensor:
    """Unit embeddings (N, 128) of pictures (N, 3, 64, 64) in [-1, 1] or of tokens (N, L)."""
    if pixels is not None:
        features = model.visual_projection(model.vision_model(pixels).pooler_output)
    else:
        features = model.text_projection(model.text_model(tokens).pooler_output)
    return F.normalize(features.float(), dim=-1)


def loss_of(
    model: CLIPModel, pixels: Tensor, tokens: Tensor, negatives: Tensor,
    read: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Symmetric cross entropy; pictures see all captions of the batch and their own hard negatives.

    pixels (B, 3, 64, 64), tokens (B, L), negatives (B, K, L). read: a loss of the vision tower's tokens (B, 65, W), its
    class token (B, W) and the text tower's tokens (B, L', W), added to the contrast.
    """
    count, k, length = negatives.shape
    texts = trimmed(torch.cat([tokens, negatives.reshape(-1, length)]), model.config.text_config.eos_token_id)
    seen, heard = model.vision_model(pixels), model.text_model(texts)
    pictures = F.normalize(model.visual_projection(seen.pooler_output).float(), dim=-1)
    words = F.normalize(model.text_projection(heard.pooler_output).float(), dim=-1)
    captions, hard = words[:count], words[count:].reshape(count, k, -1)
    scale = model.logit_scale.exp().clamp(max=100)
    with torch.autocast(pixels.device.type, enabled=False):  # similarities times 100 need more than bfloat16's 8 bits
        between = scale * pictures @ captions.T
    own = scale * (pictures[:, None] * hard).sum(-1)
    # Captions that say the same as a picture's own are not negatives of it.
    same = (tokens[:, None] == tokens[None]).all(-1) & ~torch.eye(count, dtype=torch.bool, device=tokens.device)
    between = between.masked_fill(same, float("-inf"))
    target = torch.arange(count, device=pixels.device)
    loss = (F.cross_entropy(torch.cat([between, own], 1), target) + F.cross_entropy(between.T, target)) / 2
    metrics = {"contrast": loss.item(), "hard": (between.diagonal()[:, None] > own).all(1).float().mean().item()}
    if read is not None:
        reading = read(seen.last_hidden_state, seen.pooler_output, heard.last_hidden_state[:count])
        loss, metrics = loss + reading, metrics | {"reading": reading.item()}
    return loss, metrics


def trimmed(tokens: Tensor, end: int) -> Tensor:
    """Tokens up to the last end-of-text token of the batch: the text tower is causal, what follows does not count."""
    return tokens[:, : int(tokens.eq(end).int().argmax(-1).max()) + 1]


def reader(nets: nn.ModuleDict, tokens: Tensor, labels: Tensor, said: Tensor, bound: Tensor, share: float):
    """`read` of `loss_of`: what the heads misread, of pictures (patches, scene, places) and of captions (words,
    attributes, what is bound to a shape), times `share`."""
    end = tokens.eq(nets["clip"].config.text_config.eos_token_id).int().argmax(-1)

    def read(patches: Tensor, pooled: Tensor, hidden: Tensor) -> Tensor:
        near, whole, place = nets["pictures"](patches, pooled, labels)
        words = nets["captions"](hidden, tokens[:, : hidden.shape[1]], end, said)
        bindings = nets["bindings"](hidden[torch.arange(len(end), device=end.device), end], bound)
        return share * (near + 0.3 * whole + 5 * place + words + 0.3 * bindings)

    return read


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    parser.add_argument("--lr", type=float, default=CONFIG.lr)
    parser.add_argument("--init", type=Path, help="model folder to go on from")
    parser.add_argument("--pool", type=int, default=POOL, help="training pictures")
    parser.add_argument("--pool-seed", type=int, default=POOL_SEED)
    parser.add_argument("--relations", action="store_true", help="more pictures of relations and of two colours")
    parser.add_argument("--bfloat16", action="store_true", help="network in bfloat16 autocast")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    config = LoopConfig(**{**CONFIG.__dict__, "steps": args.steps, "lr": args.lr})
    mixture = RELATIONAL if args.relations else MIXTURE
    pool = make_labelled_pool(args.pool, args.pool_seed, args.out.parent / "pools", mixture)
    if args.init:
        tokenizer = CLIPProcessor.from_pretrained(args.init).tokenizer
    else:
        tokenizer = build_tokenizer(pool.captions[:20_000])
    tokens = token_ids(tokenizer, pool.captions)
    said, bound = attribute_targets(pool.captions), said_labels(pool.captions)
    torch.manual_seed(config.seed)
    model = CLIPModel.from_pretrained(args.init) if args.init else build(tokenizer)
    nets = nn.ModuleDict({"clip": model, "pictures": PictureHeads(128), "captions": CaptionHeads(128, len(tokenizer)),
                          "bindings": BindingHead(128)})
    nets = nets.to(args.device).train()
    model.set_attn_implementation("eager")  # much faster than the fused kernel in bfloat16 on a CPU, the same numbers

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        index = rows(len(pool), config.batch, config.seed, step)
        rng = np.random.default_rng((config.seed, step))
        hard = [text for i in index.tolist() for text in hard_negatives(pool.captions[i], NEGATIVES, rng)]
        negatives = token_ids(tokenizer, hard).reshape(len(index), NEGATIVES, -1).to(args.device)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.bfloat16):
            words = tokens[index].to(args.device)
            share = 0.5 * (1 + math.cos(math.pi * step / config.steps))
            labels = (rows_of[index].to(args.device) for rows_of in (pool.labels, said, bound))
            read = reader(nets, words, *labels, share)
            return loss_of(model, pool.floats(index).to(args.device), words, negatives, read)

    warnings.simplefilter("ignore")
    with tqdm(total=config.steps, desc="shapes-clip", mininterval=10) as bar:
        for row in train(nets, loss, config, args.out / "run", deciding(args)):
            bar.update(row["step"] - bar.n)
            if row["step"] % 50 == 0:
                bar.set_postfix({name: f"{row[name]:.3f}" for name in ("contrast", "hard", "reading")})
    model.set_attn_implementation("sdpa")
    model.cpu().eval().save_pretrained(args.out / "model")
    build_processor(tokenizer).save_pretrained(args.out / "model")


if __name__ == "__main__":
    main()
