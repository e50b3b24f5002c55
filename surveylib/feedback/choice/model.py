"""What all choice models share: strengths, further parameters, a log-likelihood for each record, and ``fit``."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from surveylib.feedback.choice.comparisons import Comparisons
from surveylib.feedback.choice.fit import fit_strengths
from surveylib.feedback.choice.intervals import Interval
from surveylib.feedback.choice.rankings import Rankings
from surveylib.feedback.choice.result import ChoiceFit

Data = Comparisons | Rankings


class ChoiceModel:
    """Base class. The parameters are n strengths with mean zero and the model's further ones, ``extras``.

    Extras are searched on a free scale (any real number), 0 being the neutral value of the prior; `natural` maps them
    to the model's own.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    reads: ClassVar[type] = Comparisons
    log_scale: ClassVar[bool] = False  # extras are positive: their intervals are symmetric on the log scale

    def extras(self, data: Data) -> tuple[str, ...]:
        """Names of the further parameters."""
        return ()

    def start(self, data: Data) -> Tensor:
        """Free values of the extras to start from, (F,) float64."""
        return torch.zeros(0, dtype=torch.float64)

    def natural(self, free: Tensor, data: Data) -> Tensor:
        """The extras (E,) of their free values (F,)."""
        return free

    def check(self, data: Data, prior: float | None) -> None:
        """Raise ValueError for data that this model cannot read or whose extras have no finite estimate."""

    def log_likelihood(self, strengths: Tensor, extras: Tensor, data: Data) -> Tensor:
        """Log-probability in nats of each record, (M,), differentiable in strengths (n,) and extras (E,)."""
        raise NotImplementedError

    def fit(
        self, data: Data, *, prior: float | None = None, interval: Interval = "sandwich",
        cluster: str | tuple | list | None = None, level: float = 0.95, resamples: int = 200, seed: int = 0,
    ) -> ChoiceFit:
        """Maximum likelihood of the strengths (mean zero) with intervals.

        Args:
            prior: None is maximum likelihood. A number s > 0 is maximum a posteriori under N(0, s²) on every strength
                and every extra on its free scale: finite for any data, pulled towards 0. The interval is then that of
                the pulled estimate.
            interval: ``"sandwich"`` (robust, H⁻¹ B H⁻¹), ``"hessian"`` (H⁻¹, right if the model is right and records
                are independent), ``"bootstrap"`` (resampling), ``"bayesian bootstrap"`` (exponential weights, no record
                is ever absent). See `surveylib.feedback.choice.intervals`.
            cluster: what is drawn independently: None (each record), ``"prompt"``, ``"annotator"``, or (M,) labels.
            level: coverage of the intervals. resamples, seed: of the bootstrap.

        Raises:
            NoFiniteFit: disconnected comparisons, infinite strengths or extras (a ValueError; says what to do).
            ValueError: data of another type, or an option outside its range.
            RuntimeError: the search did not converge.
        """
        if not isinstance(data, self.reads):
            raise ValueError(f"{self.title} reads {self.reads.__name__}, not {type(data).__name__}")
        return fit_strengths(self, data, prior=prior, interval=interval, cluster=cluster, level=level,
                             resamples=resamples, seed=seed)
