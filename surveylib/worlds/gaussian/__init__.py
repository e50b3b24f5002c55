"""The Gaussian world: mixtures with exact densities and scores, exact aligned optima, and small models over them."""
