"""The command line by `python -m vgsplus`, as torchrun starts it."""

from vgsplus.cli import main

if __name__ == "__main__":
    main()
