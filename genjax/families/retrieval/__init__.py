"""Retrieval of documents, and language models that read what was retrieved."""
