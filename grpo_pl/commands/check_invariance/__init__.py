"""`check-invariance`: whether ranks, micro-batches and strategy leave the gradient of a config as it is."""
