"""Variational autoencoders: `vae.py` is the basic model, all others vary it."""
