"""What a response is worth: the contract and the weighted sum (`base`), rules, tests, judges, models."""
