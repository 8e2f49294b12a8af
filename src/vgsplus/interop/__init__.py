"""Models of other systems, read and written; trained models, loaded and shared."""

from vgsplus.interop import convert, fairseq, fast_vgs, hub, huggingface, loading, pretrained

__all__ = ["convert", "fairseq", "fast_vgs", "hub", "huggingface", "loading", "pretrained"]
