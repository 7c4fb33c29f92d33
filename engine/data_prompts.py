"""From a row of the user's own data to an example: columns, the chat template, and what makes a row unusable."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from aapa.engine.data_rows import BadRow
from aapa.engine.errors import UserError
from aapa.engine.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = str | tuple[Mapping[str, Any], ...]
PLAINEST = ({"role": "user", "content": "x"},)


@dataclass(frozen=True)
class RowRules:
    """What is asked of a row.

    Attributes:
        needs_experts: whether a row without an expert is bad; otherwise it has none.
        wrap_prompts: whether a prompt that is a text becomes one message of a user.
        template_kwargs: for the chat template.
        longest_prompt, longest: tokens that a prompt, and a prompt with an expert, may have.
    """

    prompt_column: str
    expert_column: str
    needs_experts: bool
    wrap_prompts: bool
    template_kwargs: Mapping[str, Any]
    longest_prompt: int
    longest: int


@dataclass(frozen=True)
class Row:
    """A row whose form is right."""

    prompt: Prompt
    experts: tuple[str, ...]
    columns: Mapping[str, Any]


def read_row(row: Mapping[str, Any], rules: RowRules) -> Row:
    """The prompt, the experts and the other columns of a row.

    Raises:
        BadRow: a prompt or an expert is missing, empty or of another type.
    """
    prompt = row.get(rules.prompt_column)
    if isinstance(prompt, str):
        check_text(prompt, rules.prompt_column)
        read: Prompt = prompt
    elif isinstance(prompt, Sequence):
        read = read_messages(prompt, rules.prompt_column)
    else:
        got = "nothing" if prompt is None else type(prompt).__name__
        raise BadRow(f"{rules.prompt_column}: expected a text or messages, got {got}")
    columns = {name: value for name, value in row.items() if name != rules.prompt_column}
    return Row(read, _experts(row.get(rules.expert_column), rules), columns)


def check_text(text: str, name: str) -> None:
    """Raises `BadRow` for blanks only, and for a lone surrogate, which JSON can write and no tokenizer reads."""
    if not text.strip():
        raise BadRow(f"{name}: expected a text that is not empty, got {text!r}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise BadRow(f"{name}: expected Unicode text, got half a surrogate pair at {error.start}") from None


def read_messages(value: Sequence[Any], name: str) -> tuple[Mapping[str, Any], ...]:
    """Messages of `role` and `content` that end before the answer; raises `BadRow` for others."""
    if not value:
        raise BadRow(f"{name}: expected at least one message, got none")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRow(f'{name}[{number}]: expected {{"role": …, "content": …}}, got {message!r:.80}')
        if not isinstance(message.get("content"), str):
            got = type(message.get("content")).__name__
            raise BadRow(f"{name}[{number}].content: expected a text, got {got}")
        for key in ("role", "content"):
            check_text(message[key], f"{name}[{number}].{key}")
        # Arrow fills the keys that only other rows have with None.
        messages.append({key: item for key, item in message.items() if item is not None})
    if messages[-1]["role"] == "assistant":
        raise BadRow(f"{name}: expected messages that end before the answer, got the assistant's as the last")
    return tuple(messages)


def _experts(value: Any, rules: RowRules) -> tuple[str, ...]:
    name = rules.expert_column
    if value is None:
        if rules.needs_experts:
            raise BadRow(f"{name}: expected an expert response, got nothing")
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise BadRow(f"{name}: expected a text or a list of texts, got {value!r:.80}")
    if not texts and rules.needs_experts:
        raise BadRow(f"{name}: expected at least one response, got none")
    for text in texts:
        check_text(text, name)
    return tuple(texts)


class Renderer:
    """Prompts as the model reads them, and what can be told of their length without making tokens.

    Raises:
        UserError: the tokenizer is needed for messages and has no chat template, or one that cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rules: RowRules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self._start = _start_token(tokenizer)
        self._bytes_bound_tokens = _bytes_bound_tokens(tokenizer)
        self._sure = _sure_characters(tokenizer)

    def example(self, row: Row, index: int) -> Example:
        """The example of a row."""
        text = self.text(row.prompt)
        if isinstance(row.prompt, tuple):
            return Example(index, text, row.experts, row.columns, messages=row.prompt)
        return Example(index, text, row.experts, row.columns, row_prompt=row.prompt)

    def text(self, prompt: Prompt) -> str:
        """The prompt with what the chat template, or the tokenizer at the start of a text, adds.

        Raises:
            BadRow: the template refuses the messages, or writes nothing.
        """
        messages = self._conversation(prompt)
        return self._start + str(prompt) if messages is None else self._rendered(messages)

    def most_tokens(self, text: str) -> int | None:
        """A bound of a text's tokens that needs no tokenizing; None where the tokenizer has none."""
        if not self._bytes_bound_tokens:
            return None
        size = len(text.encode())
        return size if text.isascii() else max(size, len(unicodedata.normalize("NFC", text).encode()))

    def surely_some(self, text: str) -> bool:
        """Whether a text is known to have tokens without making them."""
        return self._bytes_bound_tokens and (self._sure is None or not self._sure.isdisjoint(text))

    def is_chat(self, prompt: Prompt) -> bool:
        """Whether the prompt goes through the chat template."""
        return isinstance(prompt, tuple) or self.rules.wrap_prompts

    def _conversation(self, prompt: Prompt) -> Sequence[Mapping[str, Any]] | None:
        if isinstance(prompt, tuple):
            return prompt
        return [{"role": "user", "content": prompt}] if self.rules.wrap_prompts else None

    def _rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        if not self.tokenizer.chat_template:
            raise UserError(
                "tokenizer.chat_template: expected one for prompts that are messages, got none; give prompts as "
                "texts, or put chat_template.jinja into the directory of model.source"
            )
        kwargs = self.rules.template_kwargs
        try:
            rendered = _render(self.tokenizer, messages, kwargs, add_generation_prompt=True)
        except _template_errors() as error:
            _check_template(self.tokenizer, kwargs)
            raise BadRow(f"{self.rules.prompt_column}: expected messages for the chat template, got {error}") from None
        check_text(rendered, f"{self.rules.prompt_column} through the chat template")
        return rendered


def _render(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, Any]],
    kwargs: Mapping[str, Any],
    **more: Any,
) -> str:
    return str(tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **more, **kwargs))


def _template_errors() -> tuple[type[Exception], ...]:
    """What a program in a template may raise."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError


def _check_template(tokenizer: PreTrainedTokenizerFast, kwargs: Mapping[str, Any]) -> None:
    """Whether the template itself, or what the recipe gives it, is why messages are refused.

    Raises:
        UserError: the template cannot be read, or renders the plainest messages only without the recipe's keywords.
    """
    from jinja2 import TemplateSyntaxError

    outcomes: list[Exception | None] = []
    for given in (kwargs, {}):
        try:
            _render(tokenizer, PLAINEST, given, add_generation_prompt=True)
            outcomes.append(None)
        except TemplateSyntaxError as error:
            text = f"a template that Jinja reads, got line {error.lineno}: {error}"
            raise UserError(f"tokenizer.chat_template: expected {text}") from None
        except _template_errors() as error:
            outcomes.append(error)
    refused, bare = outcomes
    if refused is not None and bare is None:
        wanted = "keywords that the chat template takes"
        raise UserError(f"data.template_kwargs: expected {wanted}, got {dict(kwargs)!r:.200}: {refused}")


def end_of_turn(tokenizer: PreTrainedTokenizerFast, template_kwargs: Mapping[str, Any]) -> str:
    """The token that ends an answer in the chat template; the tokenizer's end of sequence where it writes none.

    What follows an answer is what two conversations that differ in it alone end with, whatever a template makes of it.
    """
    try:
        first, second = (
            _render(tokenizer, [*PLAINEST, {"role": "assistant", "content": answer}], template_kwargs)
            for answer in ("000", "111")
        )
    except _template_errors() as error:
        wanted = "one that renders an assistant's answer, whose end is that of responses"
        raise UserError(f"tokenizer.chat_template: expected {wanted}, got {error}") from None
    if first == second:
        wanted = "one that writes an assistant's answer, whose end is that of responses"
        raise UserError(f"tokenizer.chat_template: expected {wanted}, got {first!r:.200} for any answer")
    same = commonprefix([first[::-1], second[::-1]])[::-1]  # noqa: RUF071 - of characters, not of paths
    after = tokenizer.encode(same.lstrip(), add_special_tokens=False)
    added = tokenizer.added_tokens_decoder
    token = tokenizer.convert_ids_to_tokens(after[0]) if after and after[0] in added else tokenizer.eos_token
    return str(token)


def _start_token(tokenizer: PreTrainedTokenizerFast) -> str:
    """What the tokenizer puts before a text of its own accord, such as Llama's beginning of sequence."""
    ids = tokenizer.encode("x")
    bos = tokenizer.bos_token_id
    return str(tokenizer.bos_token) if bos is not None and ids and ids[0] == bos else ""


def _bytes_bound_tokens(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether no text has more tokens than bytes in normal form C: BPE on bytes, at most behind that normalisation."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    found = json.loads(backend.to_str())
    normalizer, splitter = found["normalizer"], json.dumps(found["pre_tokenizer"])
    return (
        found["model"]["type"] == "BPE"
        and '"ByteLevel"' in splitter
        and '"add_prefix_space": true' not in splitter  # a byte more for each part of the text
        and '"Removed"' not in splitter
        and (normalizer is None or normalizer["type"] == "NFC")
    )


def _sure_characters(tokenizer: PreTrainedTokenizerFast) -> frozenset[str] | None:
    """Of a BPE on bytes, characters that are never dropped; None where none is, for every byte is a token."""
    from tokenizers.pre_tokenizers import ByteLevel

    known = tokenizer.get_vocab()
    if all(letter in known for letter in ByteLevel.alphabet()):
        return None
    return frozenset(letter for letter in map(chr, range(33, 127)) if letter in known)
