"""Energy-based models, which Markov chain Monte Carlo trains."""
