"""Pretrained reward models on transformers, one file a model. Weights are never part of this package; each file says
where they come from, and loading without them raises FileNotFoundError."""
