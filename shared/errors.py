"""What a user can cause: one sentence that names the culprit and what to do, exit code 2."""

import difflib
from collections.abc import Iterable

EXIT_CODE = 2


class UserError(Exception):
    """Bad input. `str(e)` is one sentence; commands print it after `label` and exit with `exit_code`.

    everywhere: of several processes all raise it in the same iteration; the main one prints it.
    """

    label, exit_code, everywhere = "error", EXIT_CODE, False


class CommonError(UserError):
    """Of what all processes read alike, so that all of them raise it."""

    everywhere = True


def nearest(word: str, known: Iterable[str], n: int = 3) -> str:
    """ "; did you mean a, b or c?", or "" where nothing is near. Compares last parts as well."""
    known = list(dict.fromkeys(known))
    near = difflib.get_close_matches(word, known, n=n, cutoff=0.6)
    last = word.rpartition(".")[2]
    by_last: dict[str, list[str]] = {}
    for key in known:
        by_last.setdefault(key.rpartition(".")[2], []).append(key)
    for match in difflib.get_close_matches(last, by_last, n=n, cutoff=0.75):
        near += [key for key in by_last[match] if key not in near]
    near = near[:n]
    if not near:
        return ""
    return "; did you mean " + (" or ".join([", ".join(near[:-1]), near[-1]]) if near[1:] else near[0]) + "?"
