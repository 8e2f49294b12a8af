"""Files that are read where they lie, by URL: paths that read ranges of them through a local cache."""

from vgsplus.remote.path import RemotePath, fetch_ranges, locate

__all__ = ["RemotePath", "fetch_ranges", "locate"]
