"""The entry point of ``python -m lifecycle.serve``."""

import sys

from mirrorspark.lifecycle.serve.command import main

if __name__ == "__main__":
    sys.exit(main())
