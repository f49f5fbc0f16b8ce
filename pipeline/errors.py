"""The two ways in which framebank says no: to a command as a whole, and to one video."""


class UserError(Exception):
    """What was asked cannot be done. The message is one line: what was wrong, and what to do (exit status 2)."""


class VideoError(Exception):
    """This one video cannot be banked. The message is its reason in the ledger; the run goes on."""
