"""Exceptions whose messages are written for the user."""

__all__ = ["Absent", "UserError"]


class UserError(Exception):
    """Bad input: one line that names the key or file, what was given, and the mend."""


class Absent(UserError):
    """The demonstrations do not allow this: they have no clean twin, no actions or no environment.

    It is no failure. The stage ends well, with `oclam.artifacts.write_absent` in place of each of its outputs, and so
    does every stage that reads one of those; the report leaves out what is absent.
    """
