"""VQAScore (arXiv 2404.01291):  r = P("Yes" | picture, question), from a vision-language model of transformers.

Question: Does this figure show "{prompt}"? Please answer yes or no. The answer's probability is that of its first token
at the first place after the question, among the whole vocabulary.

Weights: any image-text-to-text model whose forward pass gives logits; the default is `llava-hf/llava-1.5-7b-hf`, one of
the paper's models in transformers' layout (`hf download llava-hf/llava-1.5-7b-hf`). The paper's own CLIP-FlanT5 is
not part of transformers; the package t2v-metrics has it.

Differentiable where the image processor is CLIP's (LLaVA-1.5); else pictures go through the processor as 8-bit ones.
Deviation: official LLaVA pads pictures to a square, transformers' processor crops them; square pictures are the same.
Checked here: probabilities against a forward pass through the plain processor, on random weights; the parameter count
of LLaVA-1.5. Not checked: scores of released weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from surveylib.rewards.contract import Reward
from surveylib.rewards.handmade import to_bytes
from surveylib.rewards.pretrained.preprocess import Preprocess
from surveylib.rewards.pretrained.weights import pretrained

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
PLAIN = "USER: {image}\n{question} ASSISTANT:"  # LLaVA-1.5's form, for processors without a chat template


class VQAScore(Reward):
    """P("Yes") in [0, 1]. The model is frozen.

    Args:
        model: maps the processor's output to `.logits` (B, L, V).
        processor: with `tokenizer` and `image_processor`.
        question: with {} for the prompt.
        answer: its first token counts.

    Raises:
        ValueError: a question without {}, or an answer without a token.
    """

    name, range = "vqascore", (0.0, 1.0)

    def __init__(self, model: Any, processor: Any, question: str = QUESTION, answer: str = "Yes"):
        if "{}" not in question:
            raise ValueError(f"the question must hold {{}} where the prompt goes; got {question!r}")
        tokens = processor.tokenizer.encode(answer, add_special_tokens=False)
        if not tokens:
            raise ValueError(f"the answer {answer!r} has no token")
        self.model, self.processor = model.eval().requires_grad_(False), processor
        self.question, self.answer = question, tokens[0]
        clip_like = type(processor.image_processor).__name__ in ("CLIPImageProcessor", "CLIPImageProcessorPil")
        self.preprocess = Preprocess.from_processor(processor.image_processor) if clip_like else None
        self.differentiable = clip_like

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """What the model is asked, with the place of the picture."""
        questions = [self.question.replace("{}", prompt) for prompt in prompts]
        if not getattr(self.processor, "chat_template", None):
            image = getattr(self.processor, "image_token", "<image>")
            return [PLAIN.replace("{image}", image).replace("{question}", question) for question in questions]
        turns = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
                 for question in questions]
        return [self.processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) in [0, 1]."""
        pictures = [Image.fromarray(picture) for picture in to_bytes(images).numpy()]
        # Padding on the right: every token keeps its position, and the logits are read where the question ends.
        inputs = self.processor(images=pictures, text=self.texts(prompts), padding=True, padding_side="right",
                                return_tensors="pt").to(self.model.device)
        if self.preprocess is not None:
            inputs["pixel_values"] = self.preprocess(images.to(self.model.device))
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        logits = self.model(**inputs, use_cache=False).logits
        last = inputs["attention_mask"].sum(1) - 1
        row = torch.arange(len(last), device=last.device)
        return logits[row, last].float().softmax(-1)[:, self.answer]


def load(path: str | Path = "llava-hf/llava-1.5-7b-hf", local_only: bool = False, **options: Any) -> VQAScore:
    """VQAScore on the model of a folder or hub name; `options` go to `VQAScore`."""
    model = pretrained(AutoModelForImageTextToText, path, local_only)
    return VQAScore(model, pretrained(AutoProcessor, path, local_only), **options)
