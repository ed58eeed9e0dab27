"""What one types: a folder for each command, and the table of them."""
