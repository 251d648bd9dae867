"""The one exception for what a user can mend."""


class InputError(Exception):
    """Bad input; the message is one sentence of cause and cure, which `main` prints without a traceback."""
