"""Schedules, batches, optimisation and checkpoints."""
