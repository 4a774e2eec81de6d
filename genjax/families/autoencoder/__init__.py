"""Autoencoders: plain, denoising, sparse and contractive."""
