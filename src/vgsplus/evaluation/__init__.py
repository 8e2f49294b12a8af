"""Measurements of a trained model."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from vgsplus.evaluation import lexical, retrieval

if TYPE_CHECKING:
    from vgsplus.evaluation import abx

__all__ = ["abx", "lexical", "retrieval"]


def __getattr__(name: str) -> ModuleType:
    # fastabx and polars take a second to import; retrieval and the lexical test do not need them.
    if name == "abx":
        return importlib.import_module("vgsplus.evaluation.abx")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
