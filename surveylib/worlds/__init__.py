"""Worlds with known answers: Gaussian mixtures with exact scores, and Shapes with a renderer and a judge."""
