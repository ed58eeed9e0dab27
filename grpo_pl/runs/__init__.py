"""What is kept of a run: its folder, checkpoints and lock, and how it goes on after an interruption."""
