"""Everything that is text: documents, tokenizers, and how tokens become examples."""
