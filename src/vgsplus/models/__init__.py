"""The network, one file a block of the paper's Fig. 1."""
