"""Mixtures: Gaussian and Bernoulli mixtures by EM, and the truncated Dirichlet process."""
