"""Tiny random-weight reward models of exactly the classes used at full scale, for tests and the scale `rehearsal`.

They are built in well under a second, need no network and read any text. Their weights are normal with a variance of
one over the fan-in, so that scores differ from picture to picture. The scores mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from surveylib.diffusion.tiny import clip_tokenizer
from surveylib.rewards.contract import Reward
from surveylib.rewards.pretrained.aesthetic import Aesthetic
from surveylib.rewards.pretrained.clip_score import ClipScore
from surveylib.rewards.pretrained.heads import LinearHead
from surveylib.rewards.pretrained.hps import HPS
from surveylib.rewards.pretrained.imagereward import ImageReward, ImageRewardModel
from surveylib.rewards.pretrained.mps import MPS, MPSModel
from surveylib.rewards.pretrained.pickscore import PickScore
from surveylib.rewards.pretrained.preprocess import Preprocess
from surveylib.rewards.pretrained.vqascore import VQAScore

SIZE, PATCH, EMBEDDING = 28, 7, 24  # pixels of the models' pictures and patches; width of the joint embedding
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": SIZE, "patch_size": PATCH}


def clip_config(tokenizer: CLIPTokenizer | None = None) -> CLIPConfig:
    """CLIP in small, with the exact GELU of the ViT-H models."""
    tokenizer = tokenizer or clip_tokenizer()
    text = {"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "max_position_embeddings": 77, "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id}
    return CLIPConfig(text_config=text, vision_config={**VISION, "hidden_act": "gelu"}, projection_dim=EMBEDDING)


def image_processor() -> CLIPImageProcessorPil:
    """CLIP's, for the tiny size."""
    return CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


def clip_parts() -> tuple[CLIPModel, CLIPTokenizer, Preprocess]:
    """Model, tokenizer and preprocessing of a tiny CLIP."""
    tokenizer = clip_tokenizer()
    return CLIPModel(clip_config(tokenizer)), tokenizer, Preprocess.from_processor(image_processor())


def bert_tokenizer() -> BertTokenizer:
    """A BERT tokenizer whose tokens are single characters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + letter for letter in letters)]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)})


def blip_configs() -> tuple[BlipVisionConfig, BlipTextConfig]:
    """ImageReward's encoders in small; the widths of vision and text differ, as in the released model."""
    vision = BlipVisionConfig(**VISION, hidden_act="gelu", layer_norm_eps=1e-6)
    text = BlipTextConfig(vocab_size=len(bert_tokenizer()), hidden_size=16, encoder_hidden_size=32,
                          intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                          max_position_embeddings=64, layer_norm_eps=1e-12, is_decoder=True, pad_token_id=0,
                          bos_token_id=2, eos_token_id=3, sep_token_id=3)
    return vision, text


def mps_model() -> MPSModel:
    """MPS in small: two layers, three heads of width 8."""
    return MPSModel(clip_config(), layers=2, heads=3, head_width=8)


def llava() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """LLaVA in small, with its processor."""
    tokenizer = clip_tokenizer()
    tokenizer.model_max_length = 512  # characters: the question alone has 60
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                       num_attention_heads=4, bos_token_id=tokenizer.bos_token_id,
                       eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    config = LlavaConfig(vision_config=CLIPVisionConfig(**VISION), text_config=text, vision_feature_layer=-2,
                         image_token_index=tokenizer.convert_tokens_to_ids("<image>"))
    processor = LlavaProcessor(image_processor(), tokenizer, patch_size=PATCH, num_additional_image_tokens=1,
                               vision_feature_select_strategy="default")
    return LlavaForConditionalGeneration(config), processor


def _hps() -> HPS:
    model, tokenizer, _ = clip_parts()
    return HPS(model, tokenizer, Preprocess(SIZE, fit="longest", eight_bit=False))


TINY: dict[str, Callable[[], Reward]] = {
    "clip_score": lambda: ClipScore(*clip_parts()),
    "aesthetic": lambda: Aesthetic(*clip_parts(), LinearHead(EMBEDDING)),
    "pickscore": lambda: PickScore(*clip_parts()),
    "hps_v2.1": _hps,
    "imagereward": lambda: ImageReward(ImageRewardModel(*blip_configs()), bert_tokenizer()),
    "mps": lambda: MPS(mps_model(), clip_tokenizer(), Preprocess.from_processor(image_processor())),
    "vqascore": lambda: VQAScore(*llava()),
}


def known(name: str) -> str:
    """The name itself.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in TINY:
        raise ValueError(f"no tiny reward model {name!r}; there are: {', '.join(TINY)}")
    return name


def tiny_reward(name: str, seed: int = 0) -> Reward:
    """A tiny random-weight reward model; the same weights for the same seed.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reward = TINY[known(name)]()
        for module in (value for value in vars(reward).values() if isinstance(value, nn.Module)):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return reward
