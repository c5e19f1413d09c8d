"""`python -m maskrcnn_lit VERB ...` is `maskrcnn-lit VERB ...`."""

import sys

from maskrcnn_lit.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
