"""The one exception for what a user can get wrong; it may be raised anywhere below the command line."""


class UserError(Exception):
    """A mistake that the user can mend. The message is one sentence: the value, what was expected, the next step.

    `maskrcnn-lit` prints it without a traceback and exits with code 2.
    """
