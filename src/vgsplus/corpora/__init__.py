"""Corpora: format, reading, writing, validation, packing; `sources` prepares them."""

from vgsplus.corpora.format import Caption
from vgsplus.corpora.reader import Corpus
from vgsplus.corpora.validation import validate
from vgsplus.corpora.writer import CorpusWriter, SplitCount, Summary

__all__ = ["Caption", "Corpus", "CorpusWriter", "SplitCount", "Summary", "validate"]
