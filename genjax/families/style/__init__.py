"""Style of one picture with the content of another."""
