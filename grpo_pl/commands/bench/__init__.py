"""`bench`: what an iteration costs, beside what it must cost and beside TRL."""
