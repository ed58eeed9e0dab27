"""`bench`: what an iteration costs, beside what it must cost and beside TRL."""

Numbers = dict[str, int | float]
"""The measurements of one iteration by name."""
