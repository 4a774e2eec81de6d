"""Generative adversarial networks: `gan.py` has the objectives, penalties and alternating updates."""
