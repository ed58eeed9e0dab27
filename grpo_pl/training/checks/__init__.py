"""Checks that components and settings go together, before anything is loaded.

Every check raises a ConfigError of one sentence, with the key to change.
"""
