"""The public archives of corpora: a table of them, and the way from an address to an unpacked folder."""
