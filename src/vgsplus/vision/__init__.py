"""Regions of pictures, described by models of others: detectors, and backbones pooled to a grid."""
