"""Models of other systems, read and written."""
