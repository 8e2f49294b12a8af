"""The training loop, batches, optimisers, checkpoints and logs."""
