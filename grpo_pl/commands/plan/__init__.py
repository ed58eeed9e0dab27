"""`plan`: the needs of a run, from its configuration alone."""
