"""The optional libraries, and their weights: what is missing is told with what to do."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vgsplus.errors import VgsplusError
from vgsplus.regions.describer import EXTRA


def library(name: str) -> Any:  # noqa: ANN401 - a module
    """Import an optional module.

    Raises:
        VgsplusError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise VgsplusError(f"the package {error.name} is not installed. Install it: {EXTRA}") from None


@contextmanager
def from_hub(model: str) -> Iterator[None]:
    """Say what to do where a library neither has the weights of `model` nor can fetch them.

    Raises:
        VgsplusError: what the library said, and the ways to have the weights here.
    """
    try:
        yield
    # The libraries raise their network's own errors, of no common class.
    except Exception as error:  # noqa: BLE001
        what = (str(error).strip() or type(error).__name__).splitlines()[0].removesuffix(".")
        raise VgsplusError(
            f"{model}: its weights cannot be had: {what}. Check the name. Without a network, name a file "
            "(--weights FILE; else --model transformers:FOLDER), copy the cache of a machine that has them, "
            "or take efficientnet-lite0, whose weights come with its package."
        ) from None
