"""What every model that describes pictures by regions offers."""

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

EXTRA = "uv pip install -e '.[vision]' in the checkout (vgsplus[vision]; docs/regions.md)"


class Describer(Protocol):
    """Describes pictures by R regions of F features each; a picture's description depends on it alone.

    Attributes:
        provenance: the model, its weights and their digest, and how pictures are prepared, as JSON.
    """

    provenance: dict[str, Any]

    def prepare(self, picture: Image.Image) -> Tensor:
        """What the model sees of a picture, (3, H, W) float32 on the CPU; threads call this at once."""

    def describe(self, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Features (B, R, F) and boxes (B, R, 4) in [0, 1], float32 on the CPU, of B prepared pictures."""
