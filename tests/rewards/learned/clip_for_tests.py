"""A random-weight shapes-clip, pictures, and pairs drawn from a known linear utility of its features."""

from functools import cache

import torch

from surveylib.feedback.pairs import PairData
from surveylib.rewards.learned.personal import embed
from surveylib.rewards.learned.trunk import Trunk
from surveylib.worlds.shapes.data import stream
from surveylib.worlds.shapes.pretrain.clip import build, build_processor
from surveylib.worlds.shapes.pretrain.text import build_tokenizer


@cache
def examples(n: int = 600):
    pictures, captions = next(stream(1500, seed=5))
    return pictures[:n], captions[:n], build_tokenizer(captions)


def make_trunk(unlock=(0, 0), seed=0) -> Trunk:
    torch.manual_seed(seed)
    tokenizer = examples()[2]
    return Trunk(build(tokenizer), build_processor(tokenizer), "random", unlock)


@cache
def embeddings():
    with torch.no_grad():
        return torch.cat([embed(make_trunk(), part) for part in examples()[0].split(100)])


def utility(sharpness=2.0):
    """(600,) a linear function of the embeddings' leading components, deviation `sharpness`, and its direction."""
    centred = embeddings() - embeddings().mean(0)
    _, _, v = torch.linalg.svd(centred, full_matrices=False)
    values = centred @ v[:6].T @ torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0])
    return sharpness * (values - values.mean()) / values.std()


def planted_pairs(m=1500, sharpness=2.0, seed=0, prompts=60, among=600):
    """Pairs of the planted utility under Bradley-Terry, and the true probabilities; the prompt plays no part.

    Only the first `among` pictures are compared.
    """
    generator = torch.Generator().manual_seed(seed)
    u, (pictures, captions, _) = utility(sharpness), examples()
    first = torch.randint(among, (m,), generator=generator)
    second = (first + 1 + torch.randint(among - 1, (m,), generator=generator)) % among
    p = torch.sigmoid(u[first] - u[second])
    ids = torch.randint(prompts, (m,), generator=generator)
    preference = torch.bernoulli(p, generator=generator)
    texts = [captions[i] for i in ids.tolist()]
    unique = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    ids = torch.tensor([unique[text] for text in texts])
    return PairData(pictures[:among], first, second, texts, ids, preference, torch.ones(m)), p
