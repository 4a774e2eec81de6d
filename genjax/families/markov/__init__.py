"""Markov models: hidden Markov models, n-grams, linear Gaussian state spaces, and Markov chain Monte Carlo."""
