"""The exception for input that cannot be used."""


class InputError(ValueError):
    """Invalid input; the message names it and says how to fix it.

    Raised for wrong shapes, dtypes and values, damaged files and impossible settings. The command
    line prints only the message and exits with code 2.
    """
