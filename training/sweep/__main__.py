"""The entry point of ``python -m training.sweep``."""

import sys

from mirrorspark.training.sweep import main

if __name__ == "__main__":
    sys.exit(main())
