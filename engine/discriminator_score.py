"""`aapa discriminator score`: responses in a file, scored as the run that fitted the discriminator reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from aapa.discriminator import Comparison, Discriminator, ExpertCache, PolarDiscriminator, load
from aapa.discriminator.quality import score_histogram
from aapa.discriminator.store import read_record
from aapa.engine.console import announce
from aapa.engine.data import TokenizedExample
from aapa.engine.data_files import FileTask
from aapa.engine.data_prompts import Renderer, RowRules, check_text, read_messages
from aapa.engine.data_rows import BadRow
from aapa.engine.errors import UserError
from aapa.engine.examples import Example
from aapa.engine.hf_directory import SafetensorsWeights, read_config, read_tokenizer
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.frozen import FrozenModel
from aapa.engine.progress import StageProgress
from aapa.engine.reward_model import RewardModel
from aapa.engine.score_plots import plot_scores
from aapa.engine.scoring import SentenceScorer, check_origin
from aapa.sentences import build_sentence_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from aapa.engine.examples import Task

# Responses scored at a time, and tokens of a forward pass.
BATCH, BATCH_TOKENS = 256, 16384


def reading_facts(task: Task, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """How a run reads texts, for the record of a discriminator: the token that ends responses, and rules of prompts.

    The trunk's own directory may name another end than the chat template's, with which the run was trained.
    """
    facts: dict[str, Any] = {"end": tokenizer.eos_token}
    if isinstance(task, FileTask):
        rules = task.rules
        # A date of TOML is no JSON.
        kwargs = json.loads(json.dumps(dict(rules.template_kwargs), default=str))
        facts["prompts"] = {"wrap_prompts": rules.wrap_prompts, "template_kwargs": kwargs}
    return facts


def score(discriminator: Path, data: Path, output: Path | None) -> None:
    """Score responses in a JSONL file of {"prompt", "response", "expert"}; one row each, by sentence.

    Args:
        discriminator: directory of a frozen one.
        data: prompts are texts, or messages for a discriminator that has a trunk; "expert" may be a list, of which the
            first is taken; "truncated": true says that a response did not come to its end.
        output: where rows of {"score", "sentences"} go; a histogram is drawn beside it. None prints them.

    Raises:
        UserError: a row is not as it should be, by file and line.
    """
    picture = None if output is None else _check_output(output, data)
    frozen = load(discriminator)
    facts = read_record(discriminator)["trunk"]
    directory = (discriminator / facts["directory"]).resolve()
    rows = list(_rows(data, chats=not isinstance(frozen, PolarDiscriminator)))
    if not rows:
        raise UserError(f"{data}: expected at least one row, got none")
    # A run with a span cuts texts by tokens of its policy's tokenizer, which a reward model does not have.
    if isinstance(frozen, PolarDiscriminator) and facts.get("span"):
        raise UserError(f"--discriminator: expected one that was fitted without anchor.span, got {discriminator}")
    if isinstance(frozen, PolarDiscriminator):
        scored = _judge_texts(frozen, directory, rows)
    else:
        assert isinstance(frozen, Discriminator), "a kind that is no reward model scores sentence states"
        scored = _score_texts(frozen, directory, facts, rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in scored]
    if output is None:
        print("\n".join(lines))
        return
    assert picture is not None
    output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    values = [sentence["score"] for row in scored for sentence in row["sentences"] if sentence["score"] is not None]
    plot_scores({data.stem: score_histogram(torch.tensor(values))}, picture)
    announce(f"{len(rows)} responses, {len(values)} sentences, mean score {sum(values) / max(len(values), 1):+.3f}")
    announce(f"written to {output} and {picture}")


def _check_output(output: Path, data: Path) -> Path:
    """Where the histogram goes, beside the scores; what cannot be written is found out before the scoring."""
    picture = output.with_suffix(".png")
    if output.suffix == ".png" or output.is_dir():
        raise UserError(f"--output: expected a file for JSON lines, got {output}")
    if data.resolve() in (output.resolve(), picture.resolve()):
        raise UserError(f"--output: expected another file than --data, got {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output: expected a file that can be written, got {output}: {error.strerror}") from None
    return picture


def _score_texts(
    frozen: Discriminator, directory: Path, facts: Mapping[str, Any], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of scores by sentence, from the states of the trunk in a directory."""
    config = read_config(directory, "discriminator.trunk")
    tokenizer = read_tokenizer(directory, config, "discriminator.trunk")
    tokenizer.eos_token = facts.get("end", tokenizer.eos_token)
    examples, responses = _tokens(rows, tokenizer, facts.get("prompts"), int(config.max_position_embeddings))
    parallel = groups.start()
    try:
        layers, layer = int(config.num_hidden_layers), facts["layer"]
        trunk = FrozenModel(
            config,
            SafetensorsWeights(directory, "discriminator.trunk", config),
            parallel,
            torch.float32,
            BATCH_TOKENS,
            layer if layer >= -1 else layers + 1 + layer,
            facts["logprob_features"],
        )
        table = build_sentence_table(tokenizer, vocab_size=config.vocab_size)
        delimiters = (facts["span"][0], facts["span"][1]) if facts.get("span") else None
        cache = ExpertCache(trunk, frozen.origin, table, frozen.granularity, delimiters=delimiters)
        scorer = SentenceScorer(frozen, trunk, table, cache, delimiters)
        parts = [slice(start, start + BATCH) for start in range(0, len(rows), BATCH)]
        return [row for part in parts for row in _score(scorer, tokenizer, examples[part], responses[part])]
    finally:
        groups.stop()


def _tokens(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, prompts: Mapping[str, Any] | None, context: int
) -> tuple[list[TokenizedExample], list[list[int]]]:
    """Prompts with their experts, and responses, as the run that fitted the discriminator would read them.

    Raises:
        UserError: a row is longer than the trunk's context, or its template refuses it; by file and line.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False))

    wrap, kwargs = (prompts["wrap_prompts"], prompts["template_kwargs"]) if prompts else (False, {})
    renderer = Renderer(tokenizer, RowRules("prompt", "expert", True, wrap, kwargs, context, context))
    examples, responses = [], []
    for index, row in enumerate(rows):
        # A task's prompts stand as they are; rows of one's own have what the tokenizer begins texts with.
        plain = prompts is None and isinstance(row["prompt"], str)
        try:
            text = row["prompt"] if plain else renderer.text(row["prompt"])
        except BadRow as error:
            raise UserError(f"{row['where']}.{error}") from None
        prompt, expert, response = ids(text), ids(row["expert"]), ids(row["response"])
        longest = len(prompt) + max(len(expert), len(response)) + 1
        if longest > context:
            raise UserError(f"{row['where']}: expected at most {context} tokens, the trunk's context, got {longest}")
        example = Example(index, text, (row["expert"],), {})
        # A response has its end, once, unless the row says that it was cut off.
        end = [tokenizer.eos_token_id]
        examples.append(TokenizedExample(example, prompt, (expert if expert[-1:] == end else expert + end,)))
        responses.append(response if response[-1:] == end or row["truncated"] else response + end)
    return examples, responses


def _judge_texts(frozen: PolarDiscriminator, directory: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of one score a response, of the reward model in a directory."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = RewardModel(directory, device, torch.float32, BATCH_TOKENS)
    check_origin(frozen, model)
    with StageProgress("reward model", len(rows), (), console=Console(stderr=True)) as progress:
        raw = model.score(
            [Comparison(row["prompt"], row["expert"], row["response"]) for row in rows],
            lambda done, _: progress.update(done, {}),
        )
    values = [round((score - frozen.mean) / frozen.std, 4) for score in raw]
    return [
        {"score": value, "sentences": [{"text": row["response"], "score": value}]}
        for row, value in zip(rows, values, strict=True)
    ]


def _score(
    scorer: SentenceScorer,
    tokenizer: PreTrainedTokenizerFast,
    examples: list[TokenizedExample],
    responses: list[list[int]],
) -> list[dict[str, Any]]:
    scores = scorer.score(examples, responses)
    calibrated_S = scores.calibrated(float("inf"))
    found = []
    for index, (response, cu) in enumerate(zip(responses, scores.cu_sents, strict=True)):
        bounds, values = cu.tolist(), scores.within(index, calibrated_S).tolist()
        judged = [scores.anchored[index] and kept for kept in scores.kept[index].tolist()]
        sentences = [
            {
                "text": tokenizer.decode(response[a:b], skip_special_tokens=True),
                "score": round(value, 4) if known else None,
            }
            for a, b, value, known in zip(bounds[:-1], bounds[1:], values, judged, strict=True)
        ]
        known_values = [value for value, known in zip(values, judged, strict=True) if known]
        mean = round(sum(known_values) / len(known_values), 4) if known_values else None
        found.append({"score": mean, "sentences": sentences})
    return found


def _rows(path: Path, chats: bool) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: expected a readable file, got {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line.decode("utf-8"))
        except ValueError as error:
            raise UserError(f"{where}: expected a JSON object, got {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, got {type(row).__name__}")
        if isinstance(row.get("expert"), list) and row["expert"]:
            row["expert"] = row["expert"][0]
        if chats and isinstance(row.get("prompt"), list):
            try:
                row["prompt"] = read_messages(row["prompt"], "prompt")
            except BadRow as error:
                raise UserError(f"{where}.{error}") from None
        if not isinstance(row.setdefault("truncated", False), bool):
            raise UserError(f"{where}.truncated: expected true or false, got {row['truncated']!r}")
        for key in ("prompt", "response", "expert"):
            if key == "prompt" and isinstance(row.get(key), tuple):
                continue
            if not isinstance(row.get(key), str) or (key != "response" and not row[key]):
                raise UserError(f"{where}.{key}: expected a text, got {row.get(key)!r}")
            if row[key].strip():
                try:
                    check_text(row[key], key)
                except BadRow as error:
                    raise UserError(f"{where}.{error}") from None
        yield row | {"where": where}
