"""A small alignment problem for the tests of the engine: DDPO on a tiny random pipeline with a reward on brightness."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch

from surveylib.alignment.engine import Progress, align
from surveylib.alignment.processes import Processes
from surveylib.diffusion.weights import gathered, is_sharded
from surveylib.diffusion.zoo import load_model
from surveylib.rewards.contract import FunctionReward
from surveylib.techniques.contract import Training
from surveylib.techniques.policy_gradient.ddpo import DDPO, DDPOConfig

PROMPTS = ["a cat", "a dog", "a bird"]
TRAINING = Training(epochs=3, samples=8, samples_per_prompt=2, updates=2, passes=1, lr=1e-2, lora_rank=2, ema=0.5,
                    micro_batch=6, sample_batch=8)


def brightness() -> FunctionReward:
    return FunctionReward(lambda pictures, prompts: pictures.mean((1, 2, 3)), "brightness", True, False)


def small_run(out: Path | None = None, processes: Processes | None = None, **changed):
    """A model and its run: (model, generator of progress)."""
    model = load_model("tiny-sd")
    technique = DDPO(DDPOConfig(steps=3, guidance=1.0, tracker_least=2))
    training = dataclasses.replace(TRAINING, **changed)
    return model, align(model, technique, brightness(), PROMPTS, training, seed=3, out=out, processes=processes)


def weights_after(steps, model) -> dict[str, torch.Tensor]:
    """Trainable weights once the run is over."""
    last: list[Progress] = list(steps)
    assert last, "the run yielded nothing"
    return {name: p.detach().clone() for name, p in model.named_trainable_parameters().items()}


def main() -> None:
    """What the tests start as a process of its own: run to the end, write the weights."""
    import atexit
    import sys

    from safetensors.torch import save_file

    torch.set_num_threads(1)
    out, result = Path(sys.argv[1]), Path(sys.argv[2])
    changed = json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
    atexit.register(lambda: sys.stdout.write(f"in a group at the end: {torch.distributed.is_initialized()}\n"))
    processes = Processes(cpu=True)
    model, steps = small_run(None if out.name == "none" else out, processes, **changed)
    for progress in steps:
        ledger = progress.ledger
        said = (progress.epoch, processes.count, ledger.network_calls, ledger.backward_passes)
        sys.stdout.write(f"epoch {' '.join(map(str, said))}\n")  # in one piece: another process writes there too
        sys.stdout.flush()
    parameters = model.named_trainable_parameters()
    held = sum((p.to_local() if is_sharded(p) else p).numel() for p in parameters.values())
    sys.stdout.write(f"holds {held / sum(p.numel() for p in parameters.values()):.2f}\n")
    weights = {name: gathered(p.detach()).contiguous() for name, p in parameters.items()}
    if processes.main:
        save_file(weights, result)


if __name__ == "__main__":
    main()
