"""Densities on a regular grid: the exact answer where no closed form exists, in one or two dimensions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Equal cells over the box [low, high]^dim.

    Attributes:
        low, high: ends of every axis. cells: number of cells of an axis. dim: 1 or 2.
    """

    low: float
    high: float
    cells: int
    dim: int

    def __post_init__(self) -> None:
        if self.dim not in (1, 2):
            raise ValueError(f"grids have 1 or 2 dimensions, got {self.dim}")
        if not self.low < self.high or self.cells < 2:
            raise ValueError(f"a grid needs low < high and at least 2 cells, got {self}")

    @property
    def axis(self) -> Tensor:
        """(cells,) cell centres of one axis, float64."""
        width = self.width
        return torch.linspace(self.low + width / 2, self.high - width / 2, self.cells, dtype=torch.float64)

    @property
    def width(self) -> float:
        """Edge of a cell."""
        return (self.high - self.low) / self.cells

    @property
    def points(self) -> Tensor:
        """(cells^dim, dim) cell centres, float64; the last axis runs fastest."""
        return torch.cartesian_prod(*[self.axis] * self.dim).reshape(-1, self.dim)

    def cell_of(self, x: Tensor) -> Tensor:
        """(B,) index of the cell that holds each point (B, dim); points outside go to the nearest cell of the edge."""
        index = ((x.double().cpu() - self.low) / self.width).floor().long().clamp(0, self.cells - 1)
        return index[:, 0] if self.dim == 1 else index[:, 0] * self.cells + index[:, 1]


class GridDensity:
    """A probability distribution over the cells of a grid.

    Attributes:
        grid: the grid. log_mass: (cells^dim,) log-probability of each cell, normalised.
        log_normaliser: log of the integral of the unnormalised density that it was made from.
    """

    def __init__(self, grid: Grid, log_density: Tensor) -> None:
        """``log_density``: unnormalised log-density at ``grid.points``."""
        log_density = log_density.double().cpu().flatten()
        if len(log_density) != grid.cells**grid.dim:
            raise ValueError(f"{len(log_density)} values for {grid.cells**grid.dim} cells")
        log_volume = grid.dim * torch.tensor(grid.width, dtype=torch.float64).log()
        self.grid = grid
        self.log_normaliser = float(torch.logsumexp(log_density, 0) + log_volume)
        self.log_mass = torch.log_softmax(log_density, 0)

    @classmethod
    def of(cls, log_density: Callable[[Tensor], Tensor], grid: Grid) -> GridDensity:
        """From a function of points (N, dim) -> (N,), for instance ``mixture.log_prob``."""
        return cls(grid, log_density(grid.points))

    @property
    def log_density(self) -> Tensor:
        """(cells^dim,) normalised log-density at ``grid.points``."""
        return self.log_mass - self.grid.dim * torch.tensor(self.grid.width, dtype=torch.float64).log()

    @property
    def density(self) -> Tensor:
        """Density as (cells,) or (cells, cells), first axis x, second axis y."""
        return self.log_density.exp().reshape([self.grid.cells] * self.grid.dim)

    def expectation(self, values: Tensor | Callable[[Tensor], Tensor]) -> Tensor:
        """Mean of values at ``grid.points``, (N,) or (N, m), or of a function of them."""
        values = values(self.grid.points) if callable(values) else values
        return torch.tensordot(self.log_mass.exp(), values.double(), 1)

    @property
    def mean(self) -> Tensor:
        """(dim,)."""
        return self.expectation(self.grid.points)

    @property
    def covariance(self) -> Tensor:
        """(dim, dim)."""
        centred = self.grid.points - self.mean
        return centred.T @ (self.log_mass.exp()[:, None] * centred)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """(n, dim) samples, float32: a cell by its mass, then uniform inside it."""
        cells = torch.multinomial(self.log_mass.exp(), n, replacement=True, generator=generator)
        jitter = torch.rand(n, self.grid.dim, generator=generator, dtype=torch.float64) - 0.5
        return (self.grid.points[cells] + jitter * self.grid.width).float()
