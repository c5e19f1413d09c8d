"""`python -m maskrcnn_lit COMMAND ...` is `maskrcnn-lit COMMAND ...`."""

import os
import sys

# `python -m` puts the working directory before the standard library, so a user's queue.py would
# shadow Python's. A `_target_` is still found there (config/instantiate.py).
if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from maskrcnn_lit.cli.main import main  # after sys.path is fixed

if __name__ == "__main__":
    sys.exit(main())
