"""Files that are read where they lie, by URL: paths that read ranges of them through a local cache."""

from vgsplus.remote.path import RemotePath, locate, read_ranges

__all__ = ["RemotePath", "locate", "read_ranges"]
