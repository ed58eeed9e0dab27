"""Rewards of responses: the contract and the weighted sum (`base`), rules, tests, judges, models."""
