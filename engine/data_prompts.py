"""From a row of the user's own data to an example: columns, the chat template, and what makes a row unusable."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aapa.engine.data_rows import BadRow
from aapa.engine.errors import UserError
from aapa.engine.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Prompt = str | tuple[Mapping[str, Any], ...]


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
        check_text(message["content"], f"{name}[{number}].content")
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
        UserError: the tokenizer is needed for messages and has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, rules: RowRules) -> None:
        self.tokenizer, self.rules = tokenizer, rules
        self._start = _start_token(tokenizer)
        self._forms: dict[tuple[str, ...], int | str] = {}
        self._bytes_bound_tokens = _bytes_bound_tokens(tokenizer)

    def example(self, row: Row, index: int) -> Example:
        """The example of a row."""
        text = self.text(row.prompt)
        if isinstance(row.prompt, tuple):
            return Example(index, text, row.experts, row.columns, messages=row.prompt)
        return Example(index, text, row.experts, row.columns, row_prompt=row.prompt)

    def text(self, prompt: Prompt) -> str:
        """The prompt with what the chat template, or the tokenizer at the start of a text, adds.

        Raises:
            BadRow: the template refuses the messages.
        """
        messages = self._conversation(prompt)
        return self._start + str(prompt) if messages is None else self._rendered(messages)

    def check_template(self, prompt: Prompt) -> int:
        """Bytes that the template adds to these messages; each sequence of roles is rendered once.

        Raises:
            BadRow: the template refuses messages of these roles.
        """
        messages = self._conversation(prompt)
        if messages is None:
            return len(self._start.encode())
        form = tuple(message["role"] for message in messages)
        if form not in self._forms:
            try:
                rendered = self._rendered([{"role": r, "content": "x"} for r in form])
                if not rendered:
                    raise BadRow(f"{self.rules.prompt_column}: expected a chat template that writes a prompt, got ''")
                self._forms[form] = len(rendered.encode())
            except BadRow as error:
                self._forms[form] = str(error)
        found = self._forms[form]
        if isinstance(found, str):
            raise BadRow(found)
        return found

    def most_tokens(self, text: str) -> int | None:
        """A bound of a text's tokens that needs no tokenizing; None where the tokenizer has none."""
        if not self._bytes_bound_tokens:
            return None
        size = len(text.encode())
        return 1 + (size if text.isascii() else max(size, len(unicodedata.normalize("NFC", text).encode())))

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
        try:
            rendered = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=True,
                **self.rules.template_kwargs,
            )
        except _template_errors() as error:
            raise BadRow(f"{self.rules.prompt_column}: expected messages for the chat template, got {error}") from None
        return str(rendered)


def _template_errors() -> tuple[type[Exception], ...]:
    """What a program in a template may raise."""
    from jinja2 import TemplateError

    return TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError


def end_of_turn(tokenizer: PreTrainedTokenizerFast, template_kwargs: Mapping[str, Any]) -> str:
    """The token that ends an answer in the chat template; the tokenizer's end of sequence where it writes none."""
    mark = "answer"
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": mark}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False, **template_kwargs))
    except _template_errors() as error:
        wanted = "one that renders an assistant's answer, whose end is that of responses"
        raise UserError(f"tokenizer.chat_template: expected {wanted}, got {error}") from None
    after = tokenizer.encode(rendered.rpartition(mark)[2], add_special_tokens=False)
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
        and (normalizer is None or normalizer["type"] == "NFC")
    )
