"""Classifiers of pictures, whose features measure the quality of samples."""
