"""The delimiters of `anchor.span` as token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from aapa.anchor import Anchor
from aapa.engine.errors import UserError
from aapa.engine.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def first_anchor(recipe: Recipe) -> Anchor | None:
    """The anchor of the first stage that has one: all share granularity and span."""
    anchors = (stage.objective.anchor for stage in recipe.stages)
    return next((anchor for anchor in anchors if anchor is not None and anchor.active), None)


def delimiter_ids(tokenizer: PreTrainedTokenizerFast, anchor: Anchor) -> tuple[int, int] | None:
    """Token ids of `anchor.span`; None where it is "all".

    Raises:
        UserError: a delimiter is not exactly one token.
    """
    if anchor.span == "all":
        return None
    found = []
    for text in anchor.span:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise UserError(f"anchor.span: expected delimiters of one token each, got {len(ids)} for {text!r}")
        found.append(ids[0])
    return found[0], found[1]


def check_spans(recipe: Recipe, tokenizer: Callable[[], PreTrainedTokenizerFast]) -> None:
    """Refuse delimiters that are not one token each, by stage.

    Args:
        tokenizer: makes the policy's; called only where a stage has delimiters.
    """
    for index, stage in enumerate(recipe.stages):
        anchor = stage.objective.anchor
        if anchor is not None and anchor.active and anchor.span != "all":
            try:
                delimiter_ids(tokenizer(), anchor)
            except UserError as error:
                raise UserError(f"stages.{index}.objective.{error}") from None
