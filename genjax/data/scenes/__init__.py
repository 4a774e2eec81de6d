"""Scenes: made pictures of one to three things with captions and questions, and an exact judge of pictures."""
