"""Helpers that code for Meta's package imports."""
