"""What the documentation holds: code blocks, links and headings of its Markdown files."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

PATTERNS = ("*.md", "docs/*.md", "projects/**/*.md", "configs/**/*.md", "shared/**/*.md")
COMMANDED = sorted(str(p.relative_to(ROOT)) for pattern in PATTERNS for p in ROOT.glob(pattern))
FENCE = re.compile(r"^(`{3,})(\w*)\s*$")
FILE_TITLE = re.compile(r"^`([\w./-]+\.\w+)`:?$")  # a line of its own before a block: the block is that file


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text, `path` the file that it is, or ""."""

    document: str
    line: int
    language: str
    text: str
    path: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str, text: str | None = None) -> list[Block]:
    """All blocks in order. ValueError: one is never closed."""
    lines = ((ROOT / document).read_text() if text is None else text).splitlines()
    found, start, before = [], None, ""
    for number, line in enumerate(lines, 1):
        fence = FENCE.match(line)
        if start is None and fence:
            start, ticks, language = number, fence[1], fence[2]
        elif start is not None and fence and fence[1] == ticks:
            title = FILE_TITLE.match(before)
            body = "\n".join(lines[start : number - 1]) + "\n"
            found.append(Block(document, start + 1, language, body, title[1] if title else ""))
            start, before = None, ""
        elif start is None and line.strip():
            before = line.strip()
    if start is not None:
        raise ValueError(f"{document}:{start}: a block that is never closed.")
    return found


def write_file(block: Block, folder: Path) -> None:
    """The file below `folder` that a block is, if it is one."""
    if block.path:
        file = folder / block.path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text)


def without_code(text: str) -> str:
    text = re.sub(r"^(`{3,}).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links_of(text: str) -> list[str]:
    """Targets of links and images."""
    return re.findall(r"\]\(\s*([^)\s]+)[^)]*\)", without_code(text))


def anchors_of(text: str) -> set[str]:
    """What a link may name after "#", by GitHub's rule."""
    without = re.sub(r"^(`{3,}).*?^\1\s*$", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+\s+(.+?)\s*$", without, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
