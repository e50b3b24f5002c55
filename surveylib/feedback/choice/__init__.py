"""Choice models: from comparisons and rankings to strengths with intervals.

| model | probability | reads | file |
|---|---|---|---|
| `BradleyTerry` | σ(θ_a - θ_b) | comparisons | `bradley_terry` |
| `RaoKupper`, `Davidson` | with ties as an outcome | comparisons | `ties` |
| `Thurstone` | Φ(θ_a - θ_b) | comparisons | `thurstone` |
| `PositionBias` | σ(θ_a - θ_b + δ) | comparisons | `position` |
| `AnnotatorAbility` | σ(α_k (θ_a - θ_b)) | comparisons with annotators | `ability` |
| `PlackettLuce` | one choice after the other | rankings: full, top-k, partitioned | `plackett_luce` |

Each file has the log-likelihood and ``sample`` as pure functions, and a class whose ``fit`` returns a `ChoiceFit`.
"""

from surveylib.feedback.choice.ability import AnnotatorAbility
from surveylib.feedback.choice.bradley_terry import BradleyTerry
from surveylib.feedback.choice.comparisons import Comparisons, comparisons, comparisons_from_records
from surveylib.feedback.choice.graph import NoFiniteFit
from surveylib.feedback.choice.model import ChoiceModel
from surveylib.feedback.choice.plackett_luce import PlackettLuce
from surveylib.feedback.choice.position import PositionBias
from surveylib.feedback.choice.rankings import Rankings, rankings, rankings_from_records
from surveylib.feedback.choice.result import ChoiceFit, Estimate
from surveylib.feedback.choice.thurstone import Thurstone
from surveylib.feedback.choice.ties import Davidson, RaoKupper

MODELS = {model.name: model for model in
          (BradleyTerry, RaoKupper, Davidson, Thurstone, PositionBias, AnnotatorAbility, PlackettLuce)}


def choice_model(name: str) -> ChoiceModel:
    """The model of that name. Raises ValueError that lists the names for an unknown one."""
    if name not in MODELS:
        raise ValueError(f"unknown choice model {name!r}: choose one of {', '.join(MODELS)}")
    return MODELS[name]()


__all__ = ["MODELS", "AnnotatorAbility", "BradleyTerry", "ChoiceFit", "ChoiceModel", "Comparisons", "Davidson",
           "Estimate", "NoFiniteFit", "PlackettLuce", "PositionBias", "Rankings", "RaoKupper", "Thurstone",
           "choice_model", "comparisons", "comparisons_from_records", "rankings", "rankings_from_records"]
