"""Measurements of a trained model."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vgsplus.evaluation import abx, lexical, retrieval

__all__ = ["abx", "lexical", "retrieval"]


def __getattr__(name: str) -> ModuleType:
    # fastabx and polars take a second to import, h5py a tenth; embedding by a trained model needs neither.
    if name in __all__:
        return importlib.import_module(f"vgsplus.evaluation.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
