"""The update on Lightning: optimizer, gradients, strategies, ranks, metrics and checks."""
