"""From the command line and config files to components."""
