"""Recurrent networks of text, music and time series."""
