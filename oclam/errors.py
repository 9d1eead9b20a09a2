"""The one exception whose message is written for the user."""

__all__ = ["UserError"]


class UserError(Exception):
    """Bad input: one line that names the key or file, what was given, and the mend."""
