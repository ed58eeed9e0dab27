"""What is wrong with a machine, an installation, a model or an engine, and how to mend it."""
