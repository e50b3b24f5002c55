"""Starts the tests' programs as processes of their own: one, or two that know of each other."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

TESTS = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
               "PYTHONFAULTHANDLER": "1"}


def start(out, result, changed="{}") -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "alignment.small", str(out), str(result), changed], cwd=TESTS,
                            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(out, result, changed="{}") -> dict[str, torch.Tensor]:
    process = start(out, result, changed)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-2000:]
    return load_file(result)


def two_processes(*module: str, **variables: str) -> str:
    """What they printed; with more environment variables."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", *module]
    process = subprocess.Popen(command, cwd=TESTS, env=ENVIRONMENT | variables, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    try:
        printed, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends its processes then; killed, it would leave them waiting for each other
        process.wait(timeout=60)
        raise
    said = errors.split("Traceback (most recent call last):\n  File \"<frozen runpy>\"")[0]  # before torchrun's own
    assert process.returncode == 0, printed[-1000:] + said[-6000:] + errors[-1000:]
    return printed
