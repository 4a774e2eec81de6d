"""Normalising flows: exact densities by invertible maps, one file a paper; `bijections/` holds the maps."""
