"""The rules of a sentence table: an automaton over kinds of characters (METHOD §1).

A state says what was read last, which quotation, code or formula is open, and whether the sentence may end at
the *mark* behind some earlier character. What comes next decides: `step` either cuts at the mark or goes on.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# Abbreviations by what their period does: a title never ends a sentence, "etc." ends one where a capital
# follows, "no." does not where a digit follows. Single letters (initials, "e.g.") need no entry.
_TITLES = """
Mr Mrs Ms Dr Prof St Mt Ph Gen Col Lt Sgt Capt Rev Hon Gov Sen Rep
vs cf viz Fig Figs fig figs Eq Eqs eq eqs pp Vol vol
"""
_CLOSING = """
etc al Inc Ltd Co Corp Jr Sr Bros Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec
sec min max approx ch Ch Sec est a.m p.m
"""
_NUMBERING = "No Nos no nos"
ABBREVIATIONS: dict[str, str] = {
    **dict.fromkeys(_TITLES.split(), ""),
    **dict.fromkeys(_CLOSING.split(), "capital"),
    **dict.fromkeys(_NUMBERING.split(), "number"),
}
_PREFIXES = frozenset(word[:end] for word in ABBREVIATIONS for end in range(1, len(word) + 1))

# A kind of characters is written as one of them: letters that occur in abbreviations and the keys below as
# themselves, a blank, a digit 0, and
#   Ω ω  another capital, another lower-case letter      ◌  rest of a character begun in an earlier token
#   字   letter of a script without capitals             ■  end of sequence
#   ☺    anything else
_SETS = {
    "\n": "\n\v\f\x85\u2028\u2029",
    "…": "…",
    ".": ".．",
    "!": "!?",
    "。": "。！？｡।॥؟۔",
    "“": "“«‹「『《〈",
    "”": "”»›」』》〉",
    "(": "({（【〔",
    ")": ")}）】〕",
    "’": "'’_~",
    ",": ",，、",
    "•": "•◦▪‣●○",
    ";": ";:/@&%<–—；：",
    **{c: c for c in '"„[]*`$\\#|-+>='},
}
_LETTERS = "".join(sorted({c for word in ABBREVIATIONS for c in word if c != "."} | {"I"}))
KINDS = " 0Ωω字☺◌■" + "".join(_SETS) + _LETTERS
_KIND_OF = {c: kind for kind, characters in _SETS.items() for c in characters}
_LOWER = frozenset("ω" + "".join(filter(str.islower, _LETTERS)))
_WORD = frozenset("Ωω字" + _LETTERS)
_PUNCTUATION = frozenset(";/-+>=#|\\,")
_STOPS = frozenset(".!…。")
_CLOSER_OF = {'"': '"', "“": "”", "„": "“", "`": "`", "(": ")", "[": ")"}
# With these a line may begin that is no continuation of the paragraph.
_BLOCK_MARKS = {"-": "dash", "*": "star", "+": "star", "#": "hash", "=": "underline", "`": "tick1", "$": "dollar"}
_BLOCK_MARKS |= {"\\": "backslash", "0": "digits1"}


class State(NamedTuple):
    """What the automaton knows.

    Attributes:
        place: what was read last; see the functions below.
        pending: how the sentence may end at the mark, or "" if it may not: "soft" behind a line break (only
            before a new block), "stop" behind one stop, "run" behind several, "closed" behind a quotation that
            ended with a stop, "capital" and "number" behind abbreviations, "hard" in any case.
        closer: kind that closes the open quotation, code or bracket, or "".
        forced: a boundary that would lie inside a token was moved here: cut before the next character.
    """

    place: str
    pending: str = ""
    closer: str = ""
    forced: bool = False


class Step(NamedTuple):
    """State behind a character, whether a sentence begins at the mark, whether the mark moves behind it."""

    after: State
    cut: bool = False
    mark: bool = False


START = State("line")
CLOSED = State("line", "hard")


def step(state: State, kind: str) -> Step:
    """What a character of this kind does."""
    if state.forced:
        return _forced_step(state._replace(forced=False), kind)
    if kind == "■":
        return Step(CLOSED, mark=True)
    if kind == "◌":
        return Step(state, mark=state.place == "stop" and bool(state.pending))
    if state.place.startswith("fence"):
        return _fence(state.place, kind)
    if state.place.startswith("math") and state.place != "mathend":
        return _math(state.place, kind)
    if state.place == "block":
        return Step(CLOSED, mark=True) if kind == "\n" else Step(state)
    if state.closer:
        return _enclosed(state, kind)
    if kind == "\n":
        return _line_break(state)
    if state.place == "line":
        return _line(state.pending, kind)
    if state.place in _UNDECIDED:
        return _undecided(state, kind)
    if state.pending:
        return _pending(state, kind)
    return _read(state.place, kind)


def _forced_step(state: State, kind: str) -> Step:
    after, _, mark = step(state, kind)
    if kind == "■":
        return Step(after, mark=True)
    if kind == "◌":
        return Step(after._replace(forced=True), mark=True)
    # The cut takes the place of the one that was pending, unless the mark moves on.
    return Step(after if mark else settled(after), cut=True, mark=mark)


def settled(state: State) -> State:
    """The state once the sentence has ended at its mark."""
    if not state.pending:
        return state
    if state.place in ("ref", "refd"):
        return State("word", closer=")")
    if state.place == "pronoun":
        return State("word:I")
    if state.closer:
        return State("word", closer=state.closer)
    return State("open" if state.place in ("space", "stop") else state.place)


def _read(place: str, kind: str) -> Step:
    """Inside a sentence: `open` at its beginning, `gap` before a word, `word` or `word:` and its letters."""
    before_word = place in ("open", "gap")
    if kind in _WORD:
        return Step(_word(place, kind))
    if kind == "0":
        return Step(State("digits1" if place == "open" else "word"))
    if kind == ".":
        return _period(place)
    if kind in _STOPS:
        return Step(State("stop", {"!": "stop", "…": "ellipsis", "。": "hard"}[kind]), mark=True)
    if kind == " ":
        return Step(State("open" if place == "open" else "gap"))
    if kind in "’*":
        return Step(State("gap" if before_word else "word"))
    if kind in _CLOSER_OF and (before_word or kind != '"'):
        return Step(State("word", closer=_CLOSER_OF[kind]))
    if kind in '")]”':
        return Step(State("word"))
    return Step(State({"$": "dollar", "\\": "backslash"}.get(kind, "gap")))


def _word(place: str, kind: str) -> State:
    if place in ("open", "gap"):
        # A letter alone is an initial, in scripts that have capitals.
        return State(f"word:{kind}" if kind in _PREFIXES or kind == "I" else "word" if kind == "字" else "letter")
    longer = place[5:] + kind
    if place.startswith("word:") and longer in _PREFIXES:
        return State(f"word:{longer}")
    return State("letter" if place.endswith(".") else "word")


def _period(place: str) -> Step:
    word = place[5:] if place.startswith("word:") else ""
    if word + "." in _PREFIXES:
        return Step(State(f"word:{word}."))
    if word in ABBREVIATIONS:
        pending = ABBREVIATIONS[word]
        return Step(State("stop", pending) if pending else State("gap"), mark=bool(pending))
    if place == "letter" or (len(word) == 1 and word != "I"):
        return Step(State("gap"))
    return Step(State("stop", "stop"), mark=True)


def _line_break(state: State) -> Step:
    place, pending = state.place, state.pending
    if state == START:
        return Step(state)
    if place == "line" or place == "mathend" or place == "underline":
        return Step(CLOSED, mark=True)
    if place == "enumerator":
        return Step(State("line", "stop"), mark=True)
    if place in ("stop", "space"):
        return Step(State("line", "run" if pending == "ellipsis" else pending), mark=True)
    if place in ("ref", "refd"):
        return Step(State("line", "soft", ")"), cut=True, mark=True)
    return Step(State("line", "soft"), mark=True)


def _line(pending: str, kind: str) -> Step:
    """At the start of a line, behind blanks and the signs of a block quotation."""
    if kind in " >":
        return Step(State("line", pending))
    if kind in "•|":
        return Step(State("open" if kind == "•" else "block"), cut=bool(pending))
    ends = _ends(pending, kind)
    if kind in _BLOCK_MARKS:
        return Step(State(_BLOCK_MARKS[kind], "soft" if pending and not ends else ""), cut=ends)
    if pending:
        return _pending(State("line", pending), kind)
    return _read("open", kind)


# Places where a block may have begun: what follows decides. "!" says that it has.
_UNDECIDED = {
    "dash": {" ": "open!", "-": "underline"},
    "star": {" ": "open!"},
    "hash": {" ": "block!", "#": "hash"},
    "underline": {" ": "underline", "-": "underline", "=": "underline"},
    "tick1": {"`": "tick2"},
    "tick2": {"`": "fence3open!"},
    "dollar": {"$": "math$!"},
    "backslash": {"[": "math[!"},
    "digits1": {"0": "digits2", ".": "enumerator", ")": "enumerator"},
    "digits2": {"0": "digits3", ".": "enumerator", ")": "enumerator"},
    "digits3": {".": "enumerator", ")": "enumerator"},
    "enumerator": {" ": "open!", ")": "enumerator"},
    "mathend": {" ": "mathend"},
}


def _undecided(state: State, kind: str) -> Step:
    place = _UNDECIDED[state.place].get(kind)
    if place is not None:
        begun = place.endswith("!")
        return Step(State(place.rstrip("!"), "" if begun else state.pending), cut=begun and bool(state.pending))
    if state.place == "tick1":
        return _enclosed(State("word", closer="`"), kind)
    return _read("word" if state.place.startswith(("digits", "enumerator")) else "gap", kind)


def _ends(pending: str, kind: str) -> bool:
    """Whether the sentence ends at the mark if a character of this kind comes behind a blank."""
    if pending == "hard":
        return True
    if not pending or pending == "soft" or kind == ",":
        return False
    if pending == "capital":
        return kind in _WORD - _LOWER
    if pending == "number":
        return kind != "0"
    # "... I" goes on, for "I" is a capital anywhere.
    return pending == "stop" or not (kind in _LOWER or kind == "0" or (pending == "run" and kind == "I"))


def _pending(state: State, kind: str) -> Step:
    """Behind something that may end the sentence."""
    place, pending = state.place, state.pending
    if place == "stop":
        return _behind_stop(pending, kind)
    if place in ("ref", "refd"):
        if kind == "0":
            return Step(State("refd", pending))
        if kind == "]" and place == "refd":
            return Step(State("stop", "stop"), mark=True)
        return _enclosed(State("word", closer=")"), kind)._replace(cut=True)
    if place == "pronoun":
        if kind in _WORD or kind == "0":
            return Step(State("word"), cut=True)
        return _read("word:I", kind)
    if kind == " ":
        return Step(state)
    if kind == "[" and place == "space" and pending == "stop":
        return Step(State("ref", pending))
    if _ends(pending, kind):
        return _read("open", kind)._replace(cut=True)
    if kind == "I" and pending == "run":
        return Step(State("pronoun", pending))
    return _read("gap", kind)


def _behind_stop(pending: str, kind: str) -> Step:
    """Directly behind a stop and what closes with it."""
    if kind == " ":
        return Step(State("space", "run" if pending == "ellipsis" else pending))
    if kind in _STOPS:
        if pending != "hard" and not (pending == "ellipsis" and kind == "…"):
            pending = "hard" if kind == "。" else "stop" if pending == "closed" else "run"
        return Step(State("stop", pending), mark=True)
    if kind in '’*")]”':
        return Step(State("stop", pending), mark=True)
    if kind == "[" and pending in ("stop", "hard"):
        return Step(State("ref", pending))
    if kind in _PUNCTUATION or pending == "ellipsis":
        return _read("gap", kind)
    if pending != "hard" and (kind == "0" or kind in _LOWER):
        return _read("word", kind)
    if _ends(pending, kind):
        return _read("open", kind)._replace(cut=True)
    return _read("gap", kind)


def _enclosed(state: State, kind: str) -> Step:
    """In a quotation, in brackets or in code, where no sentence ends: only lists and the like get out of them."""
    place, closer = state.place, state.closer
    if kind == "\n":
        return Step(CLOSED if place == "line" else State("line", "soft", closer), mark=True)
    if place == "line":
        if kind in " >":
            return Step(state)
        if kind in _BLOCK_MARKS or kind in "•|":
            return _line(state.pending, kind)
    if kind == closer or (closer == ")" and kind == "]"):
        return Step(State("stop", "closed"), mark=True) if place == "stop" else Step(State("word"))
    if kind in ".!。" or (place == "stop" and kind in '’*")]”'):
        return Step(State("stop", closer=closer))
    return Step(State("word", closer=closer))


def _fence(place: str, kind: str) -> Step:
    """In a code block: "fence", the number of backticks that close it, and what was read of the line."""
    ticks, read = int(place[5]), place[6:]
    if kind == "\n":
        return Step(CLOSED, mark=True) if read == "close" else Step(State(f"fence{ticks}line"))
    if read in ("open", "info"):
        if kind == "`":
            # A fourth backtick, or one in the same line: code after all, and not a block.
            return Step(State("fence4open" if read == "open" else "word"))
        return Step(State(f"fence{ticks}info"))
    if read in ("line", "close") and kind in " >":
        return Step(State(place))
    if kind == "`" and (read in ("line", "close") or read.startswith("tick")):
        if read == "close":
            return Step(State(place))
        seen = int(read[4:] or 0) + 1 if read != "line" else 1
        return Step(State(f"fence{ticks}close" if seen == ticks else f"fence{ticks}tick{seen}"))
    return Step(State(f"fence{ticks}"))


def _math(place: str, kind: str) -> Step:
    """In a displayed formula: "math", its opening, and what was read of its end or of a line. A blank line ends it."""
    opening, read = place[4], place[5:]
    if kind == "\n":
        return Step(CLOSED, mark=True) if read == "line" else Step(State(f"math{opening}line"))
    if read == "line" and kind == " ":
        return Step(State(place))
    if read == "1" and kind == {"$": "$", "[": "]"}[opening]:
        return Step(State("mathend"))
    return Step(State(f"math{opening}1" if kind == {"$": "$", "[": "\\"}[opening] else f"math{opening}"))


# A character that goes on in the next token.
_BEGUN = re.compile(rb"(?:[\xc2-\xf4]|[\xe0-\xf4][\x80-\xbf]|[\xf0-\xf4][\x80-\xbf]{2})\Z")


class _KindTable(dict[int, str]):
    """For `str.translate`; finds out about a character when it is first met."""

    def __missing__(self, code: int) -> str:
        self[code] = kind = _kind(chr(code))
        return kind


def _kind(character: str) -> str:
    if character in _KIND_OF:
        return _KIND_OF[character]
    if character in _LETTERS:
        return character
    if character.isalpha():
        return "ω" if character.islower() else "Ω" if character.isupper() else "字"
    if character.isdecimal():
        return "0"
    if character.isspace():
        return " "
    # Combining marks, joiners and variation selectors are part of the character before them.
    return "◌" if unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf") else "☺"


_KIND_TABLE = _KindTable()


def character_kinds(text: bytes) -> str:
    """Kinds of the characters of a vocabulary entry; its UTF-8 may begin or end inside a character."""
    rest = text.lstrip(bytes(range(0x80, 0xC0)))
    kinds = "◌" if len(rest) < len(text) else ""
    begun = _BEGUN.search(rest)
    whole = rest[: begun.start()] if begun else rest
    kinds += whole.decode("utf-8", errors="replace").translate(_KIND_TABLE)
    if begun:
        # Most characters of two bytes are letters, most of three belong to scripts without capitals; emoji have four.
        lead = begun[0][0]
        symbol = lead in (0xC2, 0xE2, 0xEF) or lead >= 0xF0 or begun[0].startswith(b"\xe3\x80")
        kinds += "☺" if symbol else "ω" if lead < 0xE0 else "字"
    return kinds
