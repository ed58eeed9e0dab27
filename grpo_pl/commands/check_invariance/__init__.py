"""Whether a config has the same gradient whatever number of ranks, micro-batches and strategy computes it."""
