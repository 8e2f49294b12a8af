"""Fetch the public archives of corpora: their table, downloads, unpacking."""
