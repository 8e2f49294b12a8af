"""Measurements of a trained model."""

from vgsplus.evaluation import retrieval

__all__ = ["retrieval"]
