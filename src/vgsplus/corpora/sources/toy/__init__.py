"""A toy corpus: drawn scenes described by a speech synthesiser."""
