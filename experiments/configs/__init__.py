"""Registered experiments, one file a family."""
