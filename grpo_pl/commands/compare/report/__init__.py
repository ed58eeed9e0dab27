"""A comparison as a report: its content in `document`, its form in templates that `rendering` fills in."""
