"""Training reward models: labelled responses in, a checkpoint that rewards can load out."""
