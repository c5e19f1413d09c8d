"""Where the repository and the helpers of the tests are."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
REPOSITORY = HELPERS.parent.parent
