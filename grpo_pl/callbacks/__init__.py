"""What one looks at while a run goes on, and what it leaves behind."""
