"""Joint speech models that learn from sound and from pictures, weighted by α and trained by schedule."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgsplus import evaluation, interop
    from vgsplus.corpora import Corpus
    from vgsplus.interop.pretrained import PretrainedModel, load
    from vgsplus.models.vgsplus import VGSPlus
    from vgsplus.schedule import Schedule

__all__ = ["Corpus", "PretrainedModel", "Schedule", "VGSPlus", "evaluation", "interop", "load"]

_HOMES = {
    "Corpus": "vgsplus.corpora.format",
    "PretrainedModel": "vgsplus.interop.pretrained",
    "Schedule": "vgsplus.schedule",
    "VGSPlus": "vgsplus.models.vgsplus",
    "load": "vgsplus.interop.pretrained",
}


def __getattr__(name: str) -> object:
    # PyTorch takes seconds and half a gigabyte; a process that prepares a corpus needs neither.
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name in __all__:
        return importlib.import_module(f"vgsplus.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
