"""The network, one file for each block of the paper's Fig. 1."""
