"""Energy-based models, trained by Markov chain Monte Carlo."""
