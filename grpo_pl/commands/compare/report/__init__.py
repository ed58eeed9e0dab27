"""A comparison as a report: what it says stands in `document`, how it is written in `html` and `markdown`."""
