"""Runs untrusted programs in a sandbox. Imports nothing heavy: worker processes use it."""
