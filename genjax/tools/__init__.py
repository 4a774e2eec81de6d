"""Tools for trained runs: quality, likelihood, latents, prompts, tables.  Functions with options as dataclasses."""
