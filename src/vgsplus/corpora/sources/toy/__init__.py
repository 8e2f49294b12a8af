"""The toy corpus: drawn scenes with synthetic spoken descriptions."""
