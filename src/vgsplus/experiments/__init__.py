"""Studies of several runs: the nine variants from start to report."""
