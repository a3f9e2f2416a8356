"""Automatic masks: everything in an image."""
