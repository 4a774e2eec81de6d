"""Markov chain Monte Carlo: transition kernels, warm-up, and diagnostics."""
