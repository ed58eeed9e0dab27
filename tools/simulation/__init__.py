"""The parts of tools/simulate.py."""
