"""Titles, sections, paragraphs, postscripts and quotation marks: written, read back, and nothing else accepted."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_oracle import damage, damage_page, oracle, page_oracle

from aapa.engine.tasks.mini_if.grammar import MAX_WORDS, write, write_other_style
from aapa.engine.tasks.mini_if.language import in_language
from aapa.engine.tasks.mini_if.lexicon import LEXICON_OF, lexicon_of
from aapa.engine.tasks.mini_if.page import Layout, Page, set_out, take_apart
from aapa.engine.tasks.mini_if.text import words
from aapa.engine.tasks.mini_if.variants import EASY, HARD, MEDIUM, Difficulty, Variant

TOPICS = tuple(LEXICON_OF)
BODY = "Tea can be warm and sweet. It gives salt to children. So taste tea at night."
FIRST, SECOND, THIRD = (f"{sentence}." for sentence in BODY.removesuffix(".").split(". "))


def write_page(topic: str, difficulty: Difficulty, rng: Random) -> str:
    while True:
        style = Variant(lexicon_of(topic), difficulty).sample_style(rng)
        text = write(topic, style, rng)
        if text is not None:
            return text


@settings(deadline=None, max_examples=300)
@given(
    seed=st.integers(0, 2**32),
    topic=st.sampled_from(TOPICS),
    difficulty=st.sampled_from((MEDIUM, HARD)),
    rounds=st.integers(0, 2),
)
def test_parser_equals_oracle_on_damaged_pages(seed: int, topic: str, difficulty: Difficulty, rounds: int) -> None:
    rng = Random(seed)
    text = write_page(topic, difficulty, rng)
    assert in_language(text, topic, difficulty)
    assert len(words(text)) <= MAX_WORDS
    for _ in range(rounds):
        text = damage_page(text, rng) if rng.random() < 0.7 else damage(text, topic, rng)
    assert in_language(text, topic, difficulty) == page_oracle(text, topic, difficulty.most)
    # What easy prompts ask for stays what it was.
    assert in_language(text, topic, EASY) == oracle(text, topic)


@settings(deadline=None)
@given(text=st.text(alphabet='ab ."<>*\nPp1S', max_size=30) | st.text(max_size=40), topic=st.sampled_from(TOPICS))
def test_random_text_is_no_page(text: str, topic: str) -> None:
    assert not in_language(text, topic, HARD)


INSIDE = {
    "prose": BODY,
    "lower case": BODY.lower(),
    "bullets": "- " + BODY.replace(". ", ".\n- "),
    "title": f"<<Sweet tea>>\n{BODY}",
    "sections": f"Part 1\n{FIRST}\nPart 2\n{SECOND} {THIRD}",
    "three sections": f"Part 1\n{FIRST}\nPart 2\n{SECOND}\nPart 3\n{THIRD}",
    "paragraphs": f"{FIRST} {SECOND}\n***\n{THIRD}",
    "postscript": f"{BODY}\nP.S. Bring salt next time.",
    "quoted": f'"{BODY}"',
    "four features": f'"<<tea and salt>>\n{FIRST}\n***\n{SECOND} {THIRD}"'.lower(),
    "three features": f"<<On tea>>\nPart 1\n{FIRST}\nPart 2\n{SECOND} {THIRD}\nP.S. Nobody forgets the salt.",
}
OUTSIDE = {
    "empty": "",
    "only a mark": '"',
    "only a title": "<<Sweet tea>>",
    "a title of another topic": f"<<Sweet bread>>\n{BODY}",
    "a title of no template": f"<<Tea is sweet>>\n{BODY}",
    "a small title": f"<<sweet tea>>\n{BODY}",
    "a title behind": f"{BODY}\n<<Sweet tea>>",
    "a title in line": f"<<Sweet tea>> {BODY}",
    "one section": f"Part 1\n{BODY}",
    "four sections": f"Part 1\n{FIRST}\nPart 2\n{SECOND}\nPart 3\nIt gives steam to children.\nPart 4\n{THIRD}",
    "sections out of order": f"Part 2\n{FIRST}\nPart 1\n{SECOND} {THIRD}",
    "an empty section": f"Part 1\n\nPart 2\n{BODY}",
    "a small heading": f"part 1\n{FIRST}\nPart 2\n{SECOND} {THIRD}",
    "a trailing separator": f"{BODY}\n***\n",
    "a longer separator": f"{FIRST} {SECOND}\n****\n{THIRD}",
    "sections and paragraphs": f"Part 1\n{FIRST}\n***\n{SECOND}\nPart 2\n{THIRD}",
    "a plain line break": f"{FIRST} {SECOND}\n{THIRD}",
    "a postscript of no template": f"{BODY}\nP.S. It gives salt to children.",
    "a postscript in line": f"{BODY} P.S. Bring salt next time.",
    "a postscript first": f"P.S. Bring salt next time.\n{BODY}",
    "two postscripts": f"{BODY}\nP.S. Bring salt next time.\nP.S. Bring steam next time.",
    "half quoted": f'"{BODY}',
    "quoted twice": f'""{BODY}""',
    "a sentence twice over paragraphs": f"{FIRST}\n***\n{SECOND}\n***\n{SECOND} {THIRD}",
    "quoted bullets": '"- ' + BODY.replace(". ", ".\n- ") + '"',
    "titled bullets": "<<Sweet tea>>\n- " + BODY.replace(". ", ".\n- "),
    "prompt echoed": f"About tea: title in << >>.\n\n<<Sweet tea>>\n{BODY}",
    "five features": f'"<<on tea>>\n{FIRST}\n***\n{SECOND} {THIRD}\np.s. bring salt next time."'.lower(),
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside(name: str) -> None:
    assert in_language(INSIDE[name], "tea", HARD)
    assert page_oracle(INSIDE[name], "tea", HARD.most)
    assert in_language(INSIDE[name], "tea", MEDIUM) is (name != "four features")


@pytest.mark.parametrize("name", OUTSIDE)
def test_outside(name: str) -> None:
    assert not in_language(OUTSIDE[name], "tea", HARD)
    assert not page_oracle(OUTSIDE[name], "tea", HARD.most)


def test_too_long_a_page_is_outside() -> None:
    long = [f"Because of {noun}, nothing is warm for old friends." for noun in ("salt", "steam", "flavor")]
    text = " ".join((FIRST, *long, THIRD))
    for page, inside in ((text, True), (f"<<Tea and salt>>\n{text}", False)):
        assert in_language(page, "tea", HARD) is inside
        assert (len(words(page)) <= MAX_WORDS) is inside


pages = st.builds(
    Page,
    groups=st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=2).map(tuple), min_size=2, max_size=3).map(
        tuple
    ),
    separation=st.sampled_from(("sections", "paragraphs")),
    title=st.sampled_from((None, "tea")),
    postscript=st.sampled_from((None, "salt")),
    quoted=st.booleans(),
)


@settings(deadline=None)
@given(page=pages, lower=st.booleans())
def test_pages_are_read_back(page: Page, lower: bool) -> None:
    assert take_apart(set_out(page, lower=lower)) == page
    assert page.layout == Layout(
        page.title is not None, page.separation, len(page.groups), page.postscript is not None, page.quoted
    )


def test_other_style_is_no_page() -> None:
    rng = Random(0)
    for _ in range(100):
        text = write_other_style(rng)
        assert not any(in_language(text, topic, HARD) for topic in TOPICS)


@pytest.mark.parametrize("difficulty", [MEDIUM, HARD], ids=lambda difficulty: difficulty.name)
def test_every_page_that_is_in_the_language_is_written(difficulty: Difficulty) -> None:
    """The support is exact: writers reach each combination of features up to the limit, and no other."""
    rng = Random(0)
    styles = [Variant(difficulty=difficulty).sample_style(rng) for _ in range(20_000)]
    seen = {(style.lower, style.layout) for style in styles if not style.bullets}
    separations = (("prose", 1), ("sections", 2), ("sections", 3), ("paragraphs", 2), ("paragraphs", 3))
    flags = (False, True)
    possible = {
        (lower, Layout(title, *separation, postscript, quoted))
        for lower in flags
        for title in flags
        for separation in separations
        for postscript in flags
        for quoted in flags
    }
    assert seen == {(lower, layout) for lower, layout in possible if lower + layout.features <= difficulty.most}
