"""Programs that nobody trusts, run in a box of their own. Imports nothing heavy: worker processes use it."""
