"""Variational autoencoders: `vae.py` is the one that the others vary."""
