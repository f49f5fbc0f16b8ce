"""The two ways in which framebank says no, to a command as a whole and to one video, and the words that help on."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What was asked cannot be done. The message is one line: what was wrong, and what to do (exit status 2)."""


class VideoError(Exception):
    """This one video cannot be banked. The message is its reason in the ledger; the run goes on."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean A, or B?)" for the nearest of the known words, whatever their case; "" where none is near."""
    by_lower = {each.lower(): each for each in known}
    near = [by_lower[each] for each in difflib.get_close_matches(word.lower(), by_lower, n=3)]
    return f" (did you mean {', or '.join(near)}?)" if near else ""
