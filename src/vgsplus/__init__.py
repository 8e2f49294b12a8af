"""vgsplus."""
