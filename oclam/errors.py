"""Exceptions whose messages are written for the user."""


class UserError(Exception):
    """Bad input: one line that names the key or file, what was given, and the fix."""


class Absent(UserError):
    """`extras` leaves this out, or the demonstrations do not allow it: no clean frames, no actions, no environment.

    This is not a failure: the stage succeeds and writes `oclam.artifacts.write_absent` in place of each output, and so
    does every stage that reads one of those; the report leaves out what is absent.
    """


def one_line(error: Exception) -> str:
    """The message of a library's error on one line, at most 300 characters."""
    return " ".join(str(error).split())[:300]
