"""The one exception that bad input raises."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a field, a value, a setting.

    The message is one sentence that names the thing and ends with the remedy. The command line
    prints it alone, without a traceback, and exits with status 2.
    """
