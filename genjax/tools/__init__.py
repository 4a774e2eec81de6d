"""What is done with a run: quality, likelihood, latents, prompts, tables.  Functions with options as dataclasses."""
