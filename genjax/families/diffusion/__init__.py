"""Diffusion, score-based and flow-matching models: a process, a target, a network and a sampler, freely combined."""
