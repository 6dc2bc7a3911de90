"""Lets ``python -m training.sweep`` run the command."""

import sys

from mirrorspark.training.sweep import main

if __name__ == "__main__":
    sys.exit(main())
