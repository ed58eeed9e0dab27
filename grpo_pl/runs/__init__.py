"""Keeps runs: their folders, checkpoints and locks, and how they resume after an interruption."""
