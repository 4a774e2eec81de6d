"""Autoregressive models of pictures and vectors: exact likelihoods by the chain rule, one file a paper."""
