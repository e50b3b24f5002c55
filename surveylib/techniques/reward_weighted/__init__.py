"""Weighted regression: learn again from the model's own pictures, the better ones more."""
