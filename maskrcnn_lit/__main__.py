"""`python -m maskrcnn_lit COMMAND ...` is `maskrcnn-lit COMMAND ...`."""

import os
import sys

# `python -m` puts the working directory in front of the standard library, where a user's queue.py
# would take the place of Python's. A `_target_` is found there all the same (config/instantiate.py).
if sys.path and sys.path[0] in ("", os.getcwd()) and not sys.flags.safe_path:
    sys.path.append(sys.path.pop(0))

from maskrcnn_lit.cli.main import main  # after the path is right

if __name__ == "__main__":
    sys.exit(main())
