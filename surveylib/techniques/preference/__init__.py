"""Preference optimisation: learn from choices, without a reward in between."""
