"""Markov models: hidden Markov models, n-grams, and linear Gaussian state spaces."""
