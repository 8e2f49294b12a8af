"""The error of a corpus that cannot be used, with every fault that was found."""

from collections.abc import Sequence
from typing import Self

from vgsplus.errors import VgsplusError

SHOWN_FAULTS = 20
HDF5_ERRORS = (OSError, KeyError, RuntimeError, ValueError, TypeError, MemoryError, AttributeError)
"""What h5py raises for files that are broken."""


class CorpusError(VgsplusError):
    """What is wrong with a corpus; `faults` holds every fault, the message the first 20."""

    def __init__(self, faults: str | Sequence[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        more = len(self.faults) - SHOWN_FAULTS
        super().__init__(
            "\n".join([*self.faults[:SHOWN_FAULTS], *([f"… and {more} more faults"] if more > 0 else [])])
        )

    def __reduce__(self) -> tuple[type[Self], tuple[list[str]]]:
        return type(self), (self.faults,)
