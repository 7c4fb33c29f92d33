"""How a text of medium or hard prompts is set out: title, sections, paragraphs, postscript, quotation marks.

`set_out` writes a page and `take_apart` reads one back. Reading is lenient: a text is well laid out if and only if
setting out what was read gives the text again.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from aapa.engine.tasks.mini_if.form import QUOTE, SEPARATOR

Separation = Literal["prose", "sections", "paragraphs"]
# Sections and paragraphs come in these numbers; the shortest text has three sentences.
PARTS: Final = (2, 3)
_POSTSCRIPT: Final = "P.S. "


class Layout(NamedTuple):
    """What a writer of prose decides about the page before the first sentence; the default is one line of prose."""

    title: bool = False
    separation: Separation = "prose"
    parts: int = 1
    postscript: bool = False
    quoted: bool = False

    @property
    def features(self) -> int:
        """How many of its choices are not the default, each of which a prompt has to ask for."""
        return self.title + (self.separation != "prose") + self.postscript + self.quoted

    @property
    def headed(self) -> bool:
        """Whether there are words on the page that are no sentence: what counts sentences counts them, too."""
        return self.title or self.separation == "sections" or self.postscript

    @property
    def starts_with_text(self) -> bool:
        """Whether the first sentence is the first thing on the page."""
        return not (self.title or self.separation == "sections" or self.quoted)

    @property
    def ends_with_text(self) -> bool:
        """Whether the last sentence is the last thing on the page."""
        return not (self.postscript or self.quoted)


class Page(NamedTuple):
    """A text in pieces, in lower case and without full stops."""

    groups: tuple[tuple[str, ...], ...]
    separation: Separation = "prose"
    title: str | None = None
    postscript: str | None = None
    quoted: bool = False

    @property
    def layout(self) -> Layout:
        """The choices that the page shows."""
        title, postscript = self.title is not None, self.postscript is not None
        return Layout(title, self.separation, len(self.groups), postscript, self.quoted)


def capital(text: str) -> str:
    """Return `text` with a capital in front."""
    return text[:1].upper() + text[1:]


def set_out(page: Page, *, lower: bool) -> str:
    """Write the page, with capitals or all in lower case."""
    lines = [f"<<{capital(page.title)}>>"] if page.title is not None else []
    for number, group in enumerate(page.groups):
        if page.separation == "sections":
            lines.append(f"Part {number + 1}")
        elif page.separation == "paragraphs" and number:
            lines.append(SEPARATOR)
        lines.append(". ".join(map(capital, group)) + ".")
    if page.postscript is not None:
        lines.append(f"{_POSTSCRIPT}{capital(page.postscript)}.")
    mark = QUOTE if page.quoted else ""
    text = f"{mark}{chr(10).join(lines)}{mark}"
    return text.lower() if lower else text


def take_apart(text: str) -> Page:
    """Read a page back; from a text that is none come pieces which set out to another text."""
    quoted = text.startswith(QUOTE)
    lines = text.lower().strip(QUOTE).split("\n")
    title = lines.pop(0).removeprefix("<<").removesuffix(">>") if lines[0].startswith("<<") else None
    postscript = None
    if lines and lines[-1].startswith(_POSTSCRIPT.lower()):
        postscript = lines.pop().removeprefix(_POSTSCRIPT.lower()).removesuffix(".")
    separation: Separation = "prose"
    if lines and lines[0] == "part 1":
        separation, lines = "sections", lines[1::2]
    elif SEPARATOR in lines:
        separation, lines = "paragraphs", lines[::2]
    groups = tuple(tuple(line.removesuffix(".").split(". ")) for line in lines)
    return Page(groups, separation, title, postscript, quoted)
