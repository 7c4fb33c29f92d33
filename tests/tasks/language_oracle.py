"""The language of the experts once more, by regular expressions made of the templates, and ways to damage a text."""

from __future__ import annotations

import re
from functools import cache
from random import Random

from aapa.engine.tasks.mini_if import grammar as g
from aapa.engine.tasks.mini_if.lexicon import LEXICON_OF, lexicon_of


def either(options: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(options)})"


@cache
def patterns(topic: str) -> dict[str, re.Pattern[str]]:
    lexicon = lexicon_of(topic)
    domain = lexicon.topics[topic]
    filled = {
        "topic": topic,
        "adjective": f"(?P<a>{either(domain.adjectives)})",
        "other_adjective": f"(?!(?P=a)){either(domain.adjectives)}",
        "noun": either(domain.nouns),
        "verb": either(domain.verbs),
        "people": either(lexicon.people),
        "time": either(lexicon.times),
        "manner": either(lexicon.manners),
        "keyword": either(lexicon.keywords),
    }
    roles = {
        "o": lexicon.openings,
        "m": lexicon.middles,
        "k": lexicon.keyword_middles,
        "c": lexicon.closings,
        "T": lexicon.titles,
        "P": lexicon.postscripts,
    }
    # A group name may occur once in a pattern, hence one alternative at a time.
    return {
        f"{role}{number}": re.compile(template.format(**filled))
        for role, templates in roles.items()
        for number, template in enumerate(templates)
    }


def roles_of(sentence: str, topic: str) -> set[str]:
    lexicon = lexicon_of(topic)
    found = {name[0] for name, pattern in patterns(topic).items() if pattern.fullmatch(sentence)}
    phrases = {"s": lexicon.start_phrases, "e": lexicon.end_phrases}
    return found | {role for role, known in phrases.items() if sentence in known}


def oracle(text: str, topic: str) -> bool:
    """Whether `text` is one line of prose, or bullets, in the language."""
    if text.startswith("- "):
        lines = text.split("\n")
        if not all(line.startswith("- ") and line.endswith(".") for line in lines):
            return False
        sentences = [line[2:-1] for line in lines]
    else:
        if not text.endswith(".") or "\n" in text:
            return False
        sentences = re.split(r"(?<=\.) ", text)
        if not all(sentence.endswith(".") for sentence in sentences):
            return False
        sentences = [sentence[:-1] for sentence in sentences]
    small = all(not character.isupper() for character in text)
    if not small:
        if not all(s[:1].isupper() and not any(c.isupper() for c in s[1:]) for s in sentences):
            return False
        sentences = [s[0].lower() + s[1:] for s in sentences]
    roles = ""
    for sentence in sentences:
        found = roles_of(sentence, topic) - {"T", "P"}
        if len(found) != 1:
            return False
        roles += found.pop()
    if not re.fullmatch("s?o[mk]{1,4}ce?", roles) or roles.count("k") > 3:
        return False
    keywords = {word for word in re.findall("[a-z]+", text.lower()) if word in lexicon_of(topic).keywords}
    return len(keywords) <= 1 and len(set(sentences)) == len(sentences) and len(re.findall("[A-Za-z]+", text)) <= 40


PAGE = re.compile(r'(?P<q>"?)(?:<<(?P<title>.*)>>\n)?(?P<body>(?:.|\n)*?)(?:\n[Pp]\.[Ss]\. (?P<ps>.*)\.)?(?P=q)')


def page_oracle(text: str, topic: str, most: int) -> bool:
    """Whether `text` is in the language where prompts ask for up to `most` features of a page."""
    found = PAGE.fullmatch(text)
    if text.startswith("- ") or found is None:
        return text.startswith("- ") and oracle(text, topic)
    small = all(not character.isupper() for character in text)
    features = small + bool(found["q"])
    for piece, role in ((found["title"], "T"), (found["ps"], "P")):
        if piece is not None:
            features += 1
            if (piece[:1] + piece[1:].lower() != piece) or (piece[:1].isupper() is small):
                return False
            if role not in roles_of(piece.lower(), topic):
                return False
    if found["ps"] is not None and ("P.S. " in text) is small:
        return False
    lines = found["body"].split("\n")
    if len(lines) > 1:
        features += 1
        word = "part" if small else "Part"
        if lines[1] == "***" and set(lines[1::2]) == {"***"} and len(lines) in (3, 5):
            lines = lines[::2]
        elif lines[::2] == [f"{word} {n + 1}" for n in range(len(lines) // 2)] and len(lines) in (4, 6):
            lines = lines[1::2]
        else:
            return False
    # Whether it is all small is decided on the whole page; a line of its own may be shorter than a word.
    body = " ".join(lines)
    return (
        features <= most
        and all(line.endswith(".") and not line.startswith(" ") for line in lines)
        and all(not character.isupper() for character in body) is small
        and oracle(body, topic)
        and len(re.findall("[A-Za-z]+", text)) <= 40
    )


def sentences_of(text: str) -> list[str]:
    return re.split(r"(?<=\.)[ \n](?:- )?", text.removeprefix("- "))


def damage(text: str, topic: str, rng: Random) -> str:
    """Change a text in a way that may or may not leave the language."""
    sentences = sentences_of(text)
    where = rng.randrange(len(sentences))
    kind = rng.randrange(9)
    if kind == 0:
        del sentences[where]
    elif kind == 1:
        sentences.insert(where, rng.choice(sentences))
    elif kind == 2:
        rng.shuffle(sentences)
    elif kind == 3:
        other = g.write(topic, g.sample_style(rng, lexicon_of(topic)), rng) or text
        sentences[where] = rng.choice(sentences_of(other))
    elif kind == 4:
        tokens = sentences[where].split(" ")
        lexicon = lexicon_of(rng.choice((topic, *LEXICON_OF)))
        domain = rng.choice(lexicon.domains)
        pool = (*domain.adjectives, *domain.nouns, *domain.verbs, *lexicon.keywords)
        tokens[rng.randrange(len(tokens))] = rng.choice(pool)
        sentences[where] = " ".join(tokens)
    elif kind == 5:
        sentences[where] = sentences[where].swapcase()
    elif kind == 6:
        return text + rng.choice(("", " ", "\n", ".", " Tea.", "- "))
    elif kind == 7:
        cut = rng.randrange(len(text) + 1)
        return text[:cut]
    glue = rng.choice((" ", "\n- ", "\n"))
    return ("- " if glue == "\n- " else "") + glue.join(sentences)


def damage_page(text: str, rng: Random) -> str:
    """Change the layout of a text in a way that may or may not leave the language."""
    lines = text.split("\n")
    where = rng.randrange(len(lines))
    kind = rng.randrange(8)
    if kind == 0:
        del lines[where]
    elif kind == 1:
        lines.insert(where, rng.choice((*lines, "***", "Part 1", "Part 2", "part 2", "P.S. ", "<<Tea>>", "")))
    elif kind == 2:
        rng.shuffle(lines)
    elif kind == 3:
        lines[where] = lines[where].swapcase()
    elif kind == 4:
        return rng.choice(('"', "")) + text.strip('"') + rng.choice(('"', ""))
    elif kind == 5:
        return text.replace(
            *rng.choice((("P.S. ", "P.S."), ("P.S. ", "p.s. "), (">>", ">"), ("***", "**"), ("\n", " ")))
        )
    elif kind == 6:
        return text.lower()
    else:
        return text.replace(". ", rng.choice((".\n***\n", ".\nP.S. ", ".\n")), 1)
    return "\n".join(lines)
