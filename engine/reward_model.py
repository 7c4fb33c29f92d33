"""Reward models: sequence-classification models of one label that judge a response beside a reference (2.2)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
)
from transformers.utils import logging

from aapa.discriminator import Comparison, Origin
from aapa.discriminator.base import content_hash
from aapa.discriminator.polar import REFERENCE_END, RESPONSE_END, TEMPLATE
from aapa.engine.errors import UserError
from aapa.engine.policy.parallel import Parallel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FIELD = "discriminator.reward_model"
# What decides a score, of what may lie in a Hugging Face directory.
MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


class RewardModel:
    """A frozen reward model and its own tokenizer, on one device.

    Attributes:
        origin: hashes of the directory's files: weights and configuration; tokenizer and template.
        longest: most tokens of an input; None for no limit.
    """

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype, micro_batch_tokens: int) -> None:
        """Loads a directory.

        Args:
            micro_batch_tokens: most tokens of a forward pass, padding included; one longer input goes alone.

        Raises:
            UserError: see `open_directory`; or weights that lack a part, such as those of a language model.
        """
        config, self.tokenizer = open_directory(directory)
        self.micro_batch_tokens, self.device = micro_batch_tokens, device
        self.origin = Origin(files_hash(directory, MODEL_FILES), -1, _tokenizer_hash(directory))
        text_config = config.get_text_config()
        self.longest: int | None = getattr(text_config, "max_position_embeddings", None)
        self.end, separator = (self.tokenizer.convert_tokens_to_ids(token) for token in (RESPONSE_END, REFERENCE_END))
        self.separator = separator
        # The score is read at the last token that is no padding, so padding must not be the last token.
        self.pad = separator if self.tokenizer.pad_token_id in (None, self.end) else int(self.tokenizer.pad_token_id)
        config.pad_token_id = text_config.pad_token_id = self.pad
        config.use_cache = text_config.use_cache = False
        logging.disable_progress_bar()
        self.model, found = AutoModelForSequenceClassification.from_pretrained(
            directory,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,  # never a pickle
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            raise UserError(f"{FIELD}: expected a reward model's weights in {directory}, got none for {missing[0]}")
        self.model.to(device).eval().requires_grad_(False)

    def encode(self, comparisons: Sequence[Comparison]) -> list[list[int]]:
        """Token ids of the inputs, exactly those of `Comparison.text`.

        Raises:
            UserError: an input that is too long, for nothing is cut off; or a tokenizer that cuts up the separators.
        """
        if not comparisons:
            return []
        encoded = self.tokenizer([c.text() for c in comparisons], add_special_tokens=False)["input_ids"]
        for ids in encoded:
            if ids[-1] != self.end or ids.count(self.separator) != 1:
                raise UserError(f"{FIELD}: expected a tokenizer that keeps {REFERENCE_END} and {RESPONSE_END} whole")
            if self.longest is not None and len(ids) > self.longest:
                raise UserError(
                    f"{FIELD}: expected at most {self.longest} tokens of prompt and reference and of prompt and "
                    f"response together, its context, got {len(ids)}; lower rollout.max_new_tokens or leave out long "
                    "examples, for nothing is cut off"
                )
        return encoded

    @torch.no_grad()
    def score(
        self, comparisons: Sequence[Comparison], on_progress: Callable[[int, int], None] | None = None
    ) -> list[float]:
        """The model's scalar for each comparison, whatever it is batched with.

        Args:
            on_progress: called after each batch with the number of comparisons done, and of all.

        Raises:
            UserError: as `encode`.
        """
        encoded = self.encode(comparisons)
        scores = [0.0] * len(encoded)
        done = 0
        for batch in self._batches([len(ids) for ids in encoded]):
            width = len(encoded[batch[0]])
            token_BT = torch.full((len(batch), width), self.pad, device=self.device)
            mask_BT = torch.zeros_like(token_BT)
            for row, index in enumerate(batch):
                token_BT[row, : len(encoded[index])] = torch.tensor(encoded[index], device=self.device)
                mask_BT[row, : len(encoded[index])] = 1
            logits = self.model(input_ids=token_BT, attention_mask=mask_BT).logits
            for index, value in zip(batch, logits[:, 0].double().tolist(), strict=True):
                scores[index] = value
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(encoded))
        return scores

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Indices of as many inputs at a time as the budget allows, the longest first."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            if batch and lengths[batch[0]] * (len(batch) + 1) > self.micro_batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch


def replica_scores(
    model: RewardModel | None,
    parallel: Parallel,
    comparisons: Sequence[Comparison],
    on_progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """The scores of the leader's model, on every rank of the replica; `model` is None on the others."""
    scores = None if model is None else model.score(comparisons, on_progress)
    found: list[float] = parallel.from_leader(scores)
    return found


def open_directory(directory: Path) -> tuple[PretrainedConfig, PreTrainedTokenizerBase]:
    """Configuration and tokenizer of a reward model; loads no weights.

    Raises:
        UserError: no Hugging Face directory, not one label, no safetensors, or no tokenizer with the separators.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{FIELD}: expected a Hugging Face directory with config.json, got {str(directory)!r}")
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:  # an architecture that is not transformers' own, or no JSON
        raise UserError(f"{FIELD}: expected a model that transformers knows in {directory}, got {error}") from None
    if config.num_labels != 1:
        raise UserError(f"{FIELD}: expected a model of one label in {directory}, got {config.num_labels}")
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        got = f"{config.model_type!r}, which transformers has no such model of"
        raise UserError(f"{FIELD}: expected a sequence-classification model in {directory}, got {got}")
    if not any(directory.glob("*.safetensors")):
        raise UserError(f"{FIELD}: expected weights as safetensors in {directory}, got none")
    if not any(file for pattern in TOKENIZER_FILES for file in directory.glob(pattern)):
        raise UserError(f"{FIELD}: expected the reward model's tokenizer in {directory}, got none")
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    for token in (REFERENCE_END, RESPONSE_END):
        ids = tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids) != [token]:
            raise UserError(f"{FIELD}: expected a tokenizer with the token {token}, got none in {directory}")
    return config, tokenizer


def files_hash(directory: Path, patterns: Sequence[str]) -> str:
    """SHA-256 over the names and contents of a directory's files that match, by name."""
    files = sorted({file for pattern in patterns for file in directory.glob(pattern)})
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(f"{file.name} {hashlib.file_digest(opened, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _tokenizer_hash(directory: Path) -> str:
    return content_hash({"template": TEMPLATE, "tokenizer": files_hash(directory, TOKENIZER_FILES)}, {})
