"""Tokenizers and text encoders of the shipped models: the CLIP classes of transformers, small."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from surveylib.worlds.shapes.prompts import VOCABULARY

LENGTH = 24  # tokens, begin and end included; the longest caption of the grammar has 19
VOCABULARY_SIZE = 1000  # an upper bound: 512 bytes and specials, the rest merges


def build_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer trained on captions: every word of the grammar becomes one token."""
    seen = [*captions, *(word for word in sorted(VOCABULARY) for _ in range(3))]
    tokenizer = CLIPTokenizer().train_new_from_iterator(seen, vocab_size=VOCABULARY_SIZE)
    tokenizer.model_max_length = LENGTH
    split = [word for word in sorted(VOCABULARY) if len(tokenizer(word).input_ids) != 3]
    if split:
        raise RuntimeError(f"words cut into several tokens: {', '.join(split)}; train on more captions")
    return tokenizer


def vocabulary_text() -> str:
    """Content of ``checkpoints/vocabulary.json``: the words that the shipped models have seen, for `load_model`."""
    return json.dumps({"words": sorted(VOCABULARY)}, indent=1) + "\n"


def text_config(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int = 4, projection: int = 128):
    """A CLIP text configuration whose special tokens are the tokenizer's own."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=LENGTH,
        projection_dim=projection,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
    """(N, LENGTH) token numbers, padded and cut to length."""
    batch = tokenizer(list(captions), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return batch.input_ids.to(torch.int64)
