"""The parser accepts what the grammar writes and nothing else, by an oracle made of regular expressions."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_oracle import damage, oracle

from aapa.engine.tasks.mini_if import grammar as g
from aapa.engine.tasks.mini_if.language import in_language, sentence_roles
from aapa.engine.tasks.mini_if.lexicon import LEXICON_OF, LEXICONS, PLAIN, Lexicon, lexicon_of
from aapa.engine.tasks.mini_if.task import MiniIF
from aapa.engine.tasks.mini_if.text import words

TEA = "Tea can be warm and sweet. It gives salt to children. So taste tea at night."
TOPICS = tuple(LEXICON_OF)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), topic=st.sampled_from(TOPICS), rounds=st.integers(0, 2))
def test_parser_equals_oracle_on_damaged_texts(seed: int, topic: str, rounds: int) -> None:
    rng = Random(seed)
    text = None
    while text is None:
        text = g.write(topic, g.sample_style(rng, lexicon_of(topic)), rng)
    assert in_language(text, topic)
    for _ in range(rounds):
        text = damage(text, topic, rng)
    assert in_language(text, topic) == oracle(text, topic)


@settings(deadline=None)
@given(text=st.text(max_size=60), topic=st.sampled_from(TOPICS))
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
        MIDDLE, "".join(f"{who.capitalize()} compare it to a lamp. " for who in PLAIN.people)
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
            assert [topic for topic in TOPICS if in_language(text, topic)] == [example.columns["topic"]]


@pytest.mark.parametrize("lexicon", LEXICONS.values(), ids=lambda lexicon: lexicon.name)
def test_other_style_is_never_in_the_language(lexicon: Lexicon) -> None:
    rng = Random(0)
    for _ in range(200):
        text = g.write_other_style(rng, lexicon)
        assert not any(in_language(text, topic) for topic in TOPICS)


def test_topics_name_their_style() -> None:
    assert [len(lexicon.topics) for lexicon in LEXICONS.values()] == [24, 24]
    assert len(set(TOPICS)) == 48
    for topic in TOPICS:
        grammar = g.topic_grammar(topic)
        groups = (grammar.openings, grammar.middles, grammar.closings, *grammar.keyword_middles.values())
        groups += (grammar.titles, grammar.postscripts)
        spoken = {word for group in groups for expansion in group for s in expansion for word in words(s)}
        assert spoken & set(TOPICS) == {topic}


@pytest.mark.parametrize("topic", TOPICS)
def test_sentences_have_one_role_and_plain_spacing(topic: str) -> None:
    grammar = g.topic_grammar(topic)
    groups = (grammar.openings, grammar.middles, grammar.closings, *grammar.keyword_middles.values())
    sentences = [s for group in groups for expansion in group for s in expansion]
    assert len(sentences) == len(set(sentences)) == len(sentence_roles(topic)) - 8
    framing = [s for group in (grammar.titles, grammar.postscripts) for expansion in group for s in expansion]
    assert len(framing) == len(set(framing)) and not set(framing) & set(sentences)
    assert not any("," in s for s in framing)
    for s in (*sentences, *framing):
        assert g.word_count([s]) == len(words(s)) and s == s.lower() and not set(s) & set('.\n"<>*')
    plain = g.topic_grammar(topic, commas=False)
    assert not any("," in s for group in (plain.openings, plain.middles, plain.closings) for e in group for s in e)
