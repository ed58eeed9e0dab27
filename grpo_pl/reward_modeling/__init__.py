"""Trains reward models: from labelled responses to a checkpoint that rewards load."""
