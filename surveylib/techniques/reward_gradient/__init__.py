"""The reward's own gradient, followed through the sampler or turned into a control."""
