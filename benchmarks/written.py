"""Results of benchmarks as JSON; imported by them."""

import json
from dataclasses import asdict
from pathlib import Path


def write_json(path: Path | None, **content: object) -> None:
    """Write `content`, in which dataclasses stand for their fields, to `path` unless it is None."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2, default=asdict) + "\n", encoding="utf-8")
