"""Measures a model: prompts on images, tracking in videos, and recall of automatic masks."""
