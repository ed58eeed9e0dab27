"""Which components and settings go together: what cannot be meant is refused before anything is loaded.

Every check raises a ConfigError of one sentence, with the key to change.
"""
