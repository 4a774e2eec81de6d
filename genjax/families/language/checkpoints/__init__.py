"""Language models of the library transformers: their settings and names of tensors, both ways."""
