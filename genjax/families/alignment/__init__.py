"""Language models that learn from answers, from preferences and from rewards."""
