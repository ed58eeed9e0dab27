"""The commands: a folder or file for each, and their table."""
