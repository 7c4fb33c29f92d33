"""What the scan accepts, training accepts: rows behind chat templates that refuse, repeat, drop or add something."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from own_rows import TEMPLATE, tokenizer, write_rows

from aapa.engine.data import tokenized
from aapa.engine.data_prompts import Renderer, RowRules, end_of_turn
from aapa.engine.data_rows import open_files
from aapa.engine.data_scan import RowExamples, scan_rows
from aapa.engine.errors import UserError

USER = {"role": "user", "content": "Describe a cat."}
EACH = "{% for m in messages %}CONTENT{% endfor %}<|im_start|>"
CALLS = [{"function": {"name": "look", "arguments": {"where": "zq" * 30}}}]


def rules(**kwargs: Any) -> RowRules:
    return RowRules("prompt", "expert", False, False, kwargs, longest_prompt=40, longest=48)


def accepted(tmp_path: Path, template: str, messages: list[Any]) -> tuple[list[int], list[tuple[str, str]]]:
    """Numbers of the rows that the scan takes, each of which training takes, too, and what it says of the others."""
    words = tokenizer(template)
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": given} for given in messages])
    rows, renderer = open_files([str(path)], "data.files"), Renderer(words, rules())
    scan = scan_rows(rows, renderer)
    for example in tokenized(RowExamples(rows, renderer, scan.good), words, 48, "train"):
        assert 0 < len(example.prompt) <= 40
    return list(scan.good), scan.bad


@pytest.mark.parametrize(
    ("content", "spoilt", "reason"),
    [
        (
            "{% if 'no' in m.content %}{{ raise_exception('never no') }}{% endif %}{{ m.content }}",
            {"content": "no cat"},
            "prompt: expected messages for the chat template, got never no",
        ),
        ("{{ m.content }}{{ 8 // (m.content | length - 2) }}", {"content": "zq"}, "chat template, got .*zero"),
        ("{{ m.content }}{{ m.content }}", {"content": "zq" * 11}, "prompt: expected at most 40 tokens, .*, got 45"),
        ("{{ m.content * m.times | default(1) }}", {"content": "zqzqzq", "times": 9}, "at most 40 tokens"),
        ("{{ m.content }}{{ m.tool_calls | default('') }}", {"tool_calls": CALLS}, "at most 40 tokens"),
        ("{{ m.content }}{{ m.name | default('') }}", {"name": "\ud800"}, "template: expected Unicode .*half"),
        ("{{ m.content }}{{ m.role }}", {"role": "\udc00"}, r"prompt\[0\].role: expected Unicode text, got half"),
    ],
)  # fmt: skip
def test_every_row_is_rendered(tmp_path: Path, content: str, spoilt: dict[str, Any], reason: str) -> None:
    good, bad = accepted(tmp_path, EACH.replace("CONTENT", content), [[USER], [USER | spoilt], [USER]])
    assert good == [0, 2]
    ((place, text),) = bad
    assert place == f"{tmp_path}/rows.jsonl:2"
    assert re.search(reason, text), text


@pytest.mark.parametrize("left", ["", " \n"])
def test_a_prompt_of_which_nothing_is_left(tmp_path: Path, left: str) -> None:
    template = "{% for m in messages %}{{ m.content | replace('gone', '" + left + "') }}{% endfor %}"
    good, ((_, text),) = accepted(tmp_path, template, [[USER], [USER | {"content": "gone"}]])
    assert good == [0]
    assert text == f"prompt through the chat template: expected a text that is not empty, got {left!r}"


def test_a_prompt_whose_bytes_the_tokenizer_drops(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE({"a": 0, "b": 1, "<eos>": 2}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "xyz"}, {"prompt": "xaz"}])
    scan = scan_rows(open_files([str(path)], "data.files"), Renderer(words, rules()))
    assert list(scan.good) == [1]
    assert [text for _, text in scan.bad] == ["prompt: expected at least one token, got none"]


def test_bytes_do_not_bound_tokens_where_spaces_are_put_before_words() -> None:
    from tokenizers import Regex, pre_tokenizers

    words = tokenizer()
    assert Renderer(words, rules()).most_tokens("abc") == 3
    words.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex("."), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    assert len(words.encode("zqzq", add_special_tokens=False)) > 4
    assert Renderer(words, rules()).most_tokens("abc") is None


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content | title | trim }}<|im_end|>{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}<|im_start|>{{ m.content[:-1] }}<|im_end|>\n{% endfor %}", "<|im_end|>"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }} <|im_end|>{% endfor %}<|im_start|>", "<|im_end|>"),
        ("<|im_start|>{% for m in messages %}{{ m.content | upper }}\n{% endfor %}", "<eos>"),
        ("{% for m in messages %}{{ m.content | tojson }}<|im_end|>{% endfor %}", "<eos>"),
    ],
)
def test_the_end_of_an_answer_is_found_whatever_becomes_of_the_answer(template: str, end: str) -> None:
    assert end_of_turn(tokenizer(template), {}) == end


def test_a_template_without_answers_has_no_end() -> None:
    with pytest.raises(UserError, match=r"tokenizer\.chat_template: expected one that writes an assistant's answer, "):
        end_of_turn(tokenizer("{{ messages[0].content }}<|im_end|>"), {})


@pytest.mark.parametrize(
    ("template", "kwargs", "pattern"),
    [
        (TEMPLATE, {"documents": "x"}, r"data\.template_kwargs: expected keywords that the chat template takes, got"),
        (TEMPLATE, {"continue_final_message": True}, r"data\.template_kwargs: .* are not compatible"),
        ("{% if mood is defined %}{{ raise_exception('no mood') }}{% endif %}" + TEMPLATE, {"mood": "x"}, "no mood"),
        ("{% for %}", {}, r"tokenizer\.chat_template: expected a template that Jinja reads, got line 1: "),
    ],
)
def test_what_is_wrong_with_every_row_is_no_rows_fault(template: str, kwargs: dict[str, Any], pattern: str) -> None:
    with pytest.raises(UserError, match=pattern):
        Renderer(tokenizer(template), rules(**kwargs)).text((USER,))
