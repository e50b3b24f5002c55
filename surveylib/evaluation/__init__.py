"""How good is what came out: measured where the answer is known, and beside all the other techniques."""
