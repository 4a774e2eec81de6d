"""Language models on the transformer stack."""
