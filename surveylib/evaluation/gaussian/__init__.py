"""Every family in the Gaussian world: how much of the way to the known optimum it goes."""
