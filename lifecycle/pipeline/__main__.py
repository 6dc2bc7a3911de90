"""The entry point of ``python -m lifecycle.pipeline``."""

import sys

from mirrorspark.lifecycle.pipeline.command import main

if __name__ == "__main__":
    sys.exit(main())
