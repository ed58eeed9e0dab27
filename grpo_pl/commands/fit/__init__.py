"""The commands that run a config: `fit` and `validate`."""
