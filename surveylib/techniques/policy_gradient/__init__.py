"""Denoising as a decision process: raise the probability of the steps that led to good pictures."""
