"""LAION aesthetic predictor v2: a linear head on the unit image embedding of CLIP ViT-L/14.

Source: the repository christophschuhmann/improved-aesthetic-predictor; trained on mean ratings from 1 to 10 by mean
squared error. Weights: `hf download openai/clip-vit-large-patch14` and the file `sac+logos+ava1-l14-linearMSE.pth` of
that repository (about 3.7 MB). Other files of the repository score differently: say which one was used.

Checked here: the layout of the head and its parameter count. Not checked: scores of the released weights.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from torch import Tensor

from surveylib.rewards.pretrained.clip import ClipReward, load_clip
from surveylib.rewards.pretrained.heads import LinearHead
from surveylib.rewards.pretrained.weights import load_exactly, read_state_dict

WEIGHTS = "SURVEYLIB_WEIGHTS"  # environment variable: a folder of weights that were fetched by hand
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"


class Aesthetic(ClipReward):
    """Predicted rating, about 1 to 10 (the head is not bounded). The prompt does not count."""

    name, needs_prompt = "aesthetic", False

    def __init__(self, model: Any, tokenizer: Any, preprocess: Any, head: LinearHead):
        super().__init__(model, tokenizer, preprocess)
        self.head = head.eval().requires_grad_(False)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,)."""
        return self.head(self.image_embeddings(images))


def load(
    path: str | Path = "openai/clip-vit-large-patch14", head: str | Path = HEAD_FILE, local_only: bool = False
) -> Aesthetic:
    """The predictor from a CLIP folder or hub name and the head's file, which is looked for in the present folder, in
    that of the environment variable SURVEYLIB_WEIGHTS and in the Hugging Face cache.

    Raises:
        FileNotFoundError: CLIP or the head's file is missing.
        ValueError: the file is not such a head.
    """
    folders = [Path(), *(Path(p) for p in [os.environ.get(WEIGHTS)] if p), Path(HF_HOME)]
    found = next((place for folder in folders if (place := folder / head).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no aesthetic head {str(head)!r} in {', '.join(str(folder.absolute()) for folder in folders)}: take "
            f"{HEAD_FILE} from the GitHub repository christophschuhmann/improved-aesthetic-predictor, put it there, "
            f"set {WEIGHTS} to its folder, or name it: aesthetic:head=PATH"
        )
    state = read_state_dict(found)
    clip = load_clip(path, local_only=local_only)
    module = LinearHead(clip[0].config.projection_dim)
    load_exactly(module, state, "the aesthetic head")
    return Aesthetic(*clip, module)
