"""Runs: where results are written and resumed, scale, seeds and randomness, the ledger of costs, memory."""
