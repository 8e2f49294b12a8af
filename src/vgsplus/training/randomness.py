"""Seeds that are functions of where in a run they are used, so that resuming needs no replay."""

from enum import IntEnum

import numpy as np


class Use(IntEnum):
    """What a seed is for; equal indices of different uses give unrelated seeds."""

    MODEL = 0
    ORDER = 1
    STEP = 2
    VALIDATION = 3
    ADDITIONAL_ORDER = 4
    ADDITIONAL_STEP = 5
    ADDITIONAL_VALIDATION = 6


def indexed_seed(seed: int, use: Use, *index: int) -> int:
    """A 64-bit seed for torch.manual_seed from the run's seed, the use and e.g. (phase, step)."""
    return int(np.random.SeedSequence([seed, use, *index]).generate_state(1, np.uint64)[0])
