"""Find rows by words: "Table 2d, decay weight"."""

import math
import re
from collections import Counter
from collections.abc import Iterable

from .entries import Entry

NAME = re.compile(r"[a-z0-9_]+(?:\.[0-9]+)?")


def words(text: str) -> list[str]:
    """Lower case, cut at everything but letters, digits, _ and decimal points. "a_b" is three words, "table2d" two."""
    names = NAME.findall(re.sub(r"table(?=\d)", "table ", text.lower()))
    return names + [part for name in names if "_" in name for part in name.split("_") if part]


def search(entries: Iterable[Entry], query: str) -> list[Entry]:
    """Rows that hold at least one of the words, best first.

    A word counts the more the fewer rows hold it, and half where it is only the start of a row's word.
    """
    entries = list(entries)
    held = [set(words(_text(entry))) for entry in entries]
    wanted = Counter(words(query))
    scores = [0.0] * len(entries)
    for word in wanted:
        exact = [word in row for row in held]
        started = [any(w.startswith(word) for w in row) if len(word) > 2 else False for row in held]
        matches = sum(e or s for e, s in zip(exact, started))
        weight = math.log(1 + len(entries) / matches) if matches else 0.0
        for i, (whole, start) in enumerate(zip(exact, started)):
            scores[i] += weight * (1.0 if whole else 0.5 if start else 0.0)
    order = sorted((i for i, score in enumerate(scores) if score), key=lambda i: (-scores[i], i))
    return [entries[i] for i in order]


def _text(entry: Entry) -> str:
    parts = (entry.id, entry.paper.title, entry.table.label, entry.table.title, entry.row, entry.set, entry.note)
    return " ".join([*parts, entry.reason, entry.source, *entry.overrides, *entry.configs()])
