"""The on-disk corpus format and its sources."""
