"""Models of other systems, read and written."""

from vgsplus.interop import convert, fairseq, fast_vgs, huggingface, loading

__all__ = ["convert", "fairseq", "fast_vgs", "huggingface", "loading"]
