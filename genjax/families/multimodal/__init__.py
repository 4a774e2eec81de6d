"""Models of several kinds of data at once."""
