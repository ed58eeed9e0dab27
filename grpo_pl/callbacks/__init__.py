"""Callbacks for watching a run, and for the files that it leaves."""
