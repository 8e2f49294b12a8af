"""Models of other systems, read and written."""

from vgsplus.interop import fast_vgs

__all__ = ["fast_vgs"]
