"""Exchange with the rest of the world: weights of other libraries, and programs that need no genjax."""
