"""Joint speech models that learn from sound and from pictures, weighted by α and trained by schedule."""

from vgsplus import evaluation, interop
from vgsplus.corpora.format import Corpus
from vgsplus.evaluation.layers import embed
from vgsplus.interop.loading import load
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.training.schedule import Schedule

__all__ = ["Corpus", "Schedule", "VGSPlus", "embed", "evaluation", "interop", "load"]
