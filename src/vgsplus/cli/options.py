"""Options that several commands share."""

from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in OUT.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change a setting, as schedule.epochs=2; may be repeated."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Every random choice is a function of it.")]
