"""Metrics of generated pictures. Those of distributions work on features, (N, d), of any extractor.

| what it asks | functions | file |
|---|---|---|
| is it what the prompt says | `faithfulness`, `clip_scores` | `faithfulness` |
| does it look like the reference set | `fid`, `kid`, `prdc` | `distributions` |
| how varied is it | `vendi`, `vendi_by_prompt`, `pairwise_distance` | `diversity` |
| how far from the base model | `distance_to_base` | `diversity` |
"""

from surveylib.evaluation.metrics.distributions import KID, PRDC, fid, kid, prdc
from surveylib.evaluation.metrics.diversity import distance_to_base, pairwise_distance, vendi, vendi_by_prompt
from surveylib.evaluation.metrics.faithfulness import Faithfulness, clip_scores, faithfulness
from surveylib.evaluation.metrics.features import FeatureExtractor, MetricError, clip_features, extract

__all__ = ["KID", "PRDC", "Faithfulness", "FeatureExtractor", "MetricError", "clip_features", "clip_scores",
           "distance_to_base", "extract", "faithfulness", "fid", "kid", "pairwise_distance", "prdc", "vendi",
           "vendi_by_prompt"]
