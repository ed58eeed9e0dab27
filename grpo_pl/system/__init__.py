"""The machine below: files, memory, output, processes. Nothing here knows reinforcement learning."""
