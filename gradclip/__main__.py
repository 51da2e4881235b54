"""``python -m gradclip`` is the command ``gradclip``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
