"""Corpora as they are published, each turned into the format of `corpora.format`."""
