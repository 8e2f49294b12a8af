"""Public archives of corpora: list, download, verify, unpack."""
