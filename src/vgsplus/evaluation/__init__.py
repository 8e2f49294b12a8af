"""Measurements of a trained model."""

from vgsplus.evaluation import lexical, retrieval

__all__ = ["lexical", "retrieval"]
