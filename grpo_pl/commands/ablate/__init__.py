"""Studies: many runs that differ in one thing each, run as one piece of work."""
