"""`doctor`: finds faults of a machine, an installation, a model or an engine, with their fixes."""
