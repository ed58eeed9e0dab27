"""`reward-data`: rows that a reward model learns from, made from rollouts and a verifier."""
