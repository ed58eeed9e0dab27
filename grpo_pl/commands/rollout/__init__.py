"""`rollout`: sample, score and keep the rollouts that `fit` would learn from first."""
