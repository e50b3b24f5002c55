"""The share of the way from the base model to the exact optimum that a technique goes, in one dimension.

The distance of a model q is KL(p* || q), with q the histogram of its samples; the whole way is KL(p* || p), exact on
the grid. An exact sample of p* of the same size has a distance too, that of its own histogram: less cannot be measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surveylib.worlds.gaussian.distances import kl_on_grid
from surveylib.worlds.gaussian.grid import Grid, GridDensity
from surveylib.worlds.gaussian.mixture import GaussianMixture
from surveylib.worlds.gaussian.tilt import tilted

GRID = Grid(-4.0, 4.0, 80, 1)


def histogram(samples: Tensor, grid: Grid = GRID) -> GridDensity:
    """The histogram of (n, 1) points, half a count added to each cell so that KL(p* || q) is finite."""
    counts = torch.bincount(grid.cell_of(samples), minlength=grid.cells).double() + 0.5
    return GridDensity(grid, counts.log())


@dataclass(frozen=True)
class TiltProblem:
    """A base mixture in one dimension, a reward with a closed-form tilt, and beta."""

    name: str
    base: GaussianMixture
    reward: object
    beta: float

    @property
    def optimum(self) -> GaussianMixture:
        """p* as a mixture."""
        return tilted(self.base, self.reward, self.beta)[0]

    def distance(self, samples: Tensor) -> float:
        """KL(p* || histogram of the samples), nats."""
        return kl_on_grid(GridDensity.of(self.optimum.log_prob, GRID), histogram(samples))

    @property
    def whole_way(self) -> float:
        """KL(p* || p), nats."""
        return kl_on_grid(*(GridDensity.of(m.log_prob, GRID) for m in (self.optimum, self.base)))

    def exact_error(self, n: int, seed: int = 0) -> float:
        """Distance of n exact samples of p*."""
        return self.distance(self.optimum.sample(n, torch.Generator().manual_seed(seed)))

    def closed(self, samples: Tensor) -> float:
        """1 - KL(p* || q) / KL(p* || p): 1 at the optimum, 0 at the base, negative beyond it."""
        return 1 - self.distance(samples) / self.whole_way

    def row(self, technique: str, samples: Tensor, calls: int, note: str = "") -> dict:
        """One row of the table of all techniques."""
        return {"technique": technique, "world": self.name, "distance": self.distance(samples),
                "exact_error": self.exact_error(len(samples)), "closed": self.closed(samples), "calls": calls,
                "note": note}
