"""The structure of a Markdown page: its headings, its fenced blocks, its links."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """A fenced block. `line` is the line number of the opening fence, from 1; `text` is the content."""

    section: str
    language: str
    line: int
    text: str

    @property
    def end(self) -> int:
        """Number of the closing fence."""
        return self.line + self.text.count("\n") + 1


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, each with the heading above it."""
    return [item for item in _items(page) if isinstance(item, Block)]


def headings(page: Path) -> list[str]:
    """The headings of a page, of every level."""
    return [item for item in _items(page) if isinstance(item, str)]


def anchors(page: Path) -> set[str]:
    """The fragments that links to the page's headings use."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings(page)}


def links(page: Path) -> list[tuple[str, str]]:
    """(path, fragment) of each link to a file or heading of this project; images are links too."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [(path, fragment) for path, _, fragment in (t.partition("#") for t in targets) if "://" not in path]


def _items(page: Path) -> Iterator[Block | str]:
    section, lines = "", iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if opened := re.fullmatch(r"```(\w*)", line):
            inside = []
            for _, line_inside in lines:
                if line_inside == "```":
                    break
                inside.append(line_inside + "\n")
            else:
                raise ValueError(f"{page}:{number}: the block has no end")
            yield Block(section, opened[1], number, "".join(inside))
        elif heading := re.fullmatch(r"#+ (.+)", line):
            section = heading[1]
            yield section
