"""A reward model: a CLIP trunk and a head. `LearnedReward` is the same thing behind the contract of all rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from surveylib.rewards.contract import Reward
from surveylib.rewards.learned.aesthetic import AestheticHead
from surveylib.rewards.learned.hpsv3 import HPSv3Head
from surveylib.rewards.learned.imagereward import ImageRewardHead
from surveylib.rewards.learned.mps import MPSHead
from surveylib.rewards.learned.pickscore import PickScoreHead
from surveylib.rewards.learned.trunk import Trunk

HEADS = {head.name: head for head in (PickScoreHead, ImageRewardHead, MPSHead, HPSv3Head, AestheticHead)}
BATCH = 128  # pictures scored at once where no gradient is wanted


class RewardModel(nn.Module):
    """Trunk and head.

    What `train.train_reward` asks of a model is here: `prepare_images` and `prepare_texts` (frozen, cached), `forward`
    on what they give, `head.loss` or `head.rating_loss`, and `reward_of`.

    Args:
        trunk: see `trunk.load_trunk`; its `unlock` says how much of it is trained.
        head: a name of `HEADS`, or a module like them.
        options: of the head.

    Raises:
        ValueError: an unknown head; the message lists the known ones.
    """

    kind = "clip"

    def __init__(self, trunk: Trunk, head: str | nn.Module = "pickscore", **options):
        super().__init__()
        if isinstance(head, str):
            if head not in HEADS:
                raise ValueError(f"unknown head {head!r}; known: {', '.join(HEADS)}")
            head = HEADS[head](trunk.widths, **options)
        self.trunk, self.head = trunk, head
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    @property
    def needs_prompt(self) -> bool:
        """Whether the score depends on the prompt."""
        return not isinstance(self.head, AestheticHead)

    def prepare_images(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [0, 1] up to the trunk's cut."""
        return self.trunk.lower_images(images)

    def prepare_texts(self, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Prompts up to the trunk's cut."""
        return self.trunk.lower_texts(prompts)

    def forward(self, first: Tensor, second: Tensor | None, *texts: Tensor) -> tuple[Tensor, Tensor | None]:
        """Outputs (B, K) of both pictures of B pairs, from prepared inputs; of the first alone without a second."""
        if second is None:
            return self.head(self.trunk.upper(first, *texts)), None
        outputs = self.head(self.trunk.upper(torch.cat([first, second]), *(torch.cat([t, t]) for t in texts)))
        return outputs.chunk(2)

    def reward_of(self, outputs: Tensor) -> Tensor:
        """(B,) rewards: the head's score, minus `shift`, over `scale`."""
        return (self.head.reward(outputs) - self.shift) / self.scale

    def as_reward(self, name: str = "learned") -> Reward:
        """This model behind the contract of all rewards."""
        return LearnedReward(self, name)

    def trained(self) -> dict[str, Tensor]:
        """Everything that is not the named trunk as it was: trained weights, buffers of trunk-free parts, scale."""
        kept = {name: value for name, value in self.named_parameters() if value.requires_grad or name[:5] != "trunk"}
        return {**kept, "shift": self.shift, "scale": self.scale}

    def describe(self) -> dict:
        """JSON values from which `store.load_learned` builds the same model."""
        trunk = {"name": self.trunk.name, "fingerprint": self.trunk.fingerprint, "unlock": list(self.trunk.unlock)}
        return {"kind": self.kind, "head": self.head.name, "options": self.head.options, "trunk": trunk}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """`eval()` inside the block, the mode it had afterwards."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


class LearnedReward(Reward):
    """A trained reward model as a `Reward`: differentiable to the pixels.

    Args:
        model: trained, or in training.
        name: for result rows.
    """

    differentiable = True

    def __init__(self, model: RewardModel, name: str = "learned"):
        self.model, self.name, self.needs_prompt = model, name, model.needs_prompt
        low, high = model.head.range()
        shift, scale = model.shift.item(), model.scale.item()
        slack = 1e-4 * (high - low) if high < float("inf") else 0.0  # rounding of a cosine
        self.range = ((low - slack - shift) / scale, (high + slack - shift) / scale)

    def outputs(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The head's outputs (B, K), for example mean and log std of `hpsv3`; columns as in ``model.head.outputs``."""
        device = self.model.shift.device
        batch = len(images) if torch.is_grad_enabled() else BATCH
        out = []
        with evaluating(self.model):
            for start in range(0, len(images), batch):
                part = images[start : start + batch].to(device)
                texts = self.model.prepare_texts(list(prompts[start : start + batch]))
                out.append(self.model(self.model.prepare_images(part), None, *texts)[0])
        return torch.cat(out)

    def score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) rewards."""
        return self.model.reward_of(self.outputs(images, prompts)).float()
