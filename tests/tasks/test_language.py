"""The parser accepts what the grammar writes and nothing else, by an oracle made of regular expressions."""

from __future__ import annotations

import re
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aapa.engine.tasks.mini_if import grammar as g
from aapa.engine.tasks.mini_if.language import in_language, sentence_roles
from aapa.engine.tasks.mini_if.task import MiniIF
from aapa.engine.tasks.mini_if.text import words

TEA = "Tea can be warm and sweet. It gives salt to children. So taste tea at night."


def either(options: tuple[str, ...]) -> str:
    return f"(?:{'|'.join(options)})"


@cache
def patterns(topic: str) -> dict[str, re.Pattern[str]]:
    domain = g.TOPICS[topic]
    filled = {
        "topic": topic,
        "adjective": f"(?P<a>{either(domain.adjectives)})",
        "other_adjective": f"(?!(?P=a)){either(domain.adjectives)}",
        "noun": either(domain.nouns),
        "verb": either(domain.verbs),
        "people": either(g.PEOPLE),
        "time": either(g.TIMES),
        "manner": either(g.MANNERS),
        "keyword": either(g.KEYWORDS),
    }
    roles = {"o": g.OPENINGS, "m": g.MIDDLES, "k": g.KEYWORD_MIDDLES, "c": g.CLOSINGS}
    # A group name may occur once in a pattern, hence one alternative at a time.
    return {
        f"{role}{number}": re.compile(template.format(**filled))
        for role, templates in roles.items()
        for number, template in enumerate(templates)
    }


def oracle(text: str, topic: str) -> bool:
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
        found = [name[0] for name, pattern in patterns(topic).items() if pattern.fullmatch(sentence)]
        found += ["s"] * (sentence in g.START_PHRASES) + ["e"] * (sentence in g.END_PHRASES)
        if len(found) != 1:
            return False
        roles += found[0]
    if not re.fullmatch("s?o[mk]{1,4}ce?", roles) or roles.count("k") > 3:
        return False
    keywords = {word for word in re.findall("[a-z]+", text.lower()) if word in g.KEYWORDS}
    return len(keywords) <= 1 and len(set(sentences)) == len(sentences) and len(re.findall("[A-Za-z]+", text)) <= 40


def damage(text: str, topic: str, rng: Random) -> str:
    """Change a text in a way that may or may not leave the language."""
    sentences = re.split(r"(?<=\.)[ \n](?:- )?", text.removeprefix("- "))
    where = rng.randrange(len(sentences))
    kind = rng.randrange(9)
    if kind == 0:
        del sentences[where]
    elif kind == 1:
        sentences.insert(where, rng.choice(sentences))
    elif kind == 2:
        rng.shuffle(sentences)
    elif kind == 3:
        other = g.write(topic, g.sample_style(rng), rng) or text
        sentences[where] = rng.choice(re.split(r"(?<=\.)[ \n](?:- )?", other.removeprefix("- ")))
    elif kind == 4:
        tokens = sentences[where].split(" ")
        domain = g.TOPICS[rng.choice((topic, *g.TOPICS))]
        tokens[rng.randrange(len(tokens))] = rng.choice((*domain.adjectives, *domain.nouns, *domain.verbs, *g.KEYWORDS))
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


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), topic=st.sampled_from(g.TOPIC_NAMES), rounds=st.integers(0, 2))
def test_parser_equals_oracle_on_damaged_texts(seed: int, topic: str, rounds: int) -> None:
    rng = Random(seed)
    text = None
    while text is None:
        text = g.write(topic, g.sample_style(rng), rng)
    assert in_language(text, topic)
    for _ in range(rounds):
        text = damage(text, topic, rng)
    assert in_language(text, topic) == oracle(text, topic)


@settings(deadline=None)
@given(text=st.text(max_size=60), topic=st.sampled_from(g.TOPIC_NAMES))
def test_random_text_is_not_in_the_language(text: str, topic: str) -> None:
    assert not in_language(text, topic)


MIDDLE = "It gives salt to children. "
OUTSIDE = {
    "empty": "",
    "no full stop": TEA[:-1],
    "space in front": " " + TEA,
    "line break behind": TEA + "\n",
    "two full stops": TEA + ".",
    "no opening": TEA.removeprefix("Tea can be warm and sweet. "),
    "no middle": TEA.replace(MIDDLE, ""),
    "no closing": TEA.removesuffix(" So taste tea at night."),
    "broken off": TEA[:40],
    "a sentence twice": TEA.replace(MIDDLE, MIDDLE * 2),
    "goes on after the end": TEA + " It gives steam to children.",
    "two closings": TEA + " In the end, tea wins.",
    "adjective repeated": TEA.replace("sweet", "warm"),
    "another topic": TEA.replace("Tea", "Bread"),
    "another domain's word": TEA.replace("salt", "clay"),
    "capital in the middle": TEA.replace("salt", "Salt"),
    "one small sentence": TEA.replace("It gives", "it gives"),
    "mixed layout": TEA.replace(" So", "\n- So"),
    "end phrase first": "That is all. " + TEA,
    "start phrase last": TEA + " Well then.",
    "two keywords": TEA.replace(MIDDLE, "Children compare it to a lamp. Children compare it to a stone. "),
    "four keyword sentences": TEA.replace(
        MIDDLE, "".join(f"{who.capitalize()} compare it to a lamp. " for who in g.PEOPLE)
    ),
    "five middles": TEA.replace(
        MIDDLE,
        "".join(f"It gives {n} to children. " for n in ("salt", "steam", "flavor", "comfort"))
        + "It gives salt to old friends. ",
    ),
    "prompt echoed": "About tea: 3 sentences.\n\n" + TEA,
    "keyword repeated": "Lamp lamp lamp.",
}
INSIDE = {
    "prose": TEA,
    "lower case": TEA.lower(),
    "bullets": "- " + TEA.replace(". ", ".\n- "),
    "phrases": f"Well then. {TEA} That is all.",
    "keyword": TEA.replace(MIDDLE, "Children compare it to a lamp. At night, a lamp becomes warm. "),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside_the_language(name: str) -> None:
    assert not in_language(OUTSIDE[name], "tea")
    assert not oracle(OUTSIDE[name], "tea")


@pytest.mark.parametrize("name", INSIDE)
def test_inside_the_language(name: str) -> None:
    assert in_language(INSIDE[name], "tea")
    assert oracle(INSIDE[name], "tea")


def test_too_long_a_text_is_outside() -> None:
    long = "Because of {}, nothing is warm for old friends. "
    text = TEA.replace(MIDDLE, "".join(long.format(noun) for noun in ("salt", "steam", "flavor")))
    assert len(words(text)) <= g.MAX_WORDS
    assert in_language(text, "tea")
    text = "Let me explain. " + text + " Enjoy the day."
    assert len(words(text)) > g.MAX_WORDS
    assert not in_language(text, "tea")


def test_unknown_topic_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^topic: expected one of tea, .*, got 'coffee'"):
        in_language(TEA, "coffee")


def test_experts_speak_about_their_own_topic_only(task: MiniIF) -> None:
    for example in task.examples("test")[:200]:
        for text in example.experts:
            assert [topic for topic in g.TOPICS if in_language(text, topic)] == [example.columns["topic"]]


def test_other_style_is_never_in_the_language() -> None:
    rng = Random(0)
    for _ in range(300):
        text = g.write_other_style(rng)
        assert not any(in_language(text, topic) for topic in g.TOPICS)


def test_sentences_have_one_role_and_plain_spacing() -> None:
    assert len(g.TOPICS) == 24
    for topic in g.TOPICS:
        grammar = g.topic_grammar(topic)
        groups = (grammar.openings, grammar.middles, grammar.closings, *grammar.keyword_middles.values())
        sentences = [s for group in groups for expansion in group for s in expansion]
        assert len(sentences) == len(set(sentences)) == len(sentence_roles(topic)) - 8
        assert all(g.word_count([s]) == len(words(s)) and s == s.lower() and "." not in s for s in sentences)
        plain = g.topic_grammar(topic, commas=False)
        assert not any("," in s for group in (plain.openings, plain.middles, plain.closings) for e in group for s in e)
