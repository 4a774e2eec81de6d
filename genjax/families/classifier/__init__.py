"""Classifiers of pictures, whose features samples are judged by."""
