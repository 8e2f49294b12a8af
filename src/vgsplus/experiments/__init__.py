"""Experiments of several runs: train and evaluate the nine variants, and report."""
