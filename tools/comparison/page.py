"""The report as one HTML file: nothing is loaded from elsewhere, nothing runs in it. The pieces that it is made of."""

import html
from collections.abc import Iterable

from tools.comparison.style import CSS

MADE_BY = "Made by `tools/compare.py`"  # in every file that the tool may replace


def page(title: str, lead: str, sections: dict[str, str]) -> str:
    """sections: {heading: HTML}."""
    links = "".join(f'<li><a href="#{_anchor(heading)}">{heading}</a></li>' for heading in sections)
    body = "".join(
        f'<section id="{_anchor(heading)}"><h2>{heading}</h2>\n{content}\n</section>\n'
        for heading, content in sections.items()
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{MADE_BY}">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<header><h1>{text(title)}</h1>\n{lead}\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>\n{body}</main>\n</body>\n</html>\n'
    )


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def text(value) -> str:
    return html.escape(str(value))


def paragraph(content: str, kind: str = "") -> str:
    return f'<p class="{kind}">{content}</p>\n' if kind else f"<p>{content}</p>\n"


def bullets(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{item}</li>' for item in items)}</ul>\n"


def facts(pairs: dict[str, str], kind: str = "") -> str:
    listed = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in pairs.items())
    return f'<dl class="facts {kind}">{listed}</dl>\n'


def listed(names: list[str]) -> str:
    """ "a, b and c", in bold."""
    names = [f"<b>{text(n)}</b>" for n in names]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if names[1:] else "".join(names)


def figure(content: str, caption: str, tall: bool = False) -> str:
    """What may be wider than the screen, and its caption, which is not. tall: it scrolls downwards as well."""
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    kind = "scroll tall" if tall else "scroll"
    return f'<figure><div class="{kind}" tabindex="0">{content}</div>{caption}</figure>\n'


def table(heads: list[str], bodies: Iterable[str], kind: str = "") -> str:
    """heads: HTML, one beginning with <th is whole; bodies: rows, each body apart from the next by a line."""
    cells = "".join(h if h.startswith("<th") else f'<th scope="col">{h}</th>' for h in heads)
    rows = "".join(f"<tbody>{body}</tbody>" for body in bodies)
    return f'<table class="{kind}"><thead><tr>{cells}</tr></thead>{rows}</table>'


def row(label: str, cells: Iterable[str], kind: str = "") -> str:
    """label, cells: HTML; a cell beginning with <td is whole."""
    cells = "".join(c if c.startswith("<td") else f"<td>{c}</td>" for c in cells)
    return f'<tr class="{kind}"><th scope="row">{label}</th>{cells}</tr>'
