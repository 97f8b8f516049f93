"""Moves knowledge into language models, and shows how much arrived."""

__version__ = "0.1.0"
