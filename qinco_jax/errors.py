"""The one exception that users are meant to read."""


class InputError(ValueError):
    """Something that was passed in cannot be used; the message names it and says what to do.

    Raised for wrong shapes, dtypes and values, damaged files and impossible settings. The command
    line prints the message alone and exits with code 2.
    """
