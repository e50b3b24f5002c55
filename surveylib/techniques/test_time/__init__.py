"""Test time: the weights stay, the sampling changes."""
