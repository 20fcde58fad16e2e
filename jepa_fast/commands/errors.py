"""What a command raises for bad input."""


class UsageError(Exception):
    """Bad input on the command line. `main` prints the message as one line and exits with code 2."""
