"""Rollout engines: prompts -> responses with the log-probabilities they were sampled with."""
