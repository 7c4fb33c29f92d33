"""The schema of a recipe: every field with its type, default and one line of documentation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    PlainSerializer,
    PlainValidator,
    model_validator,
)

from aapa.engine.recipe.checks import consistency_problems
from aapa.engine.recipe.data_tables import DataTable, RewardsTable, RewardTable
from aapa.engine.recipe.discriminator_checks import discriminator_kind
from aapa.engine.recipe.fields import (
    CHANGEABLE,
    BelowOne,
    Count,
    CountOrZero,
    Fraction,
    Name,
    NotNegative,
    Positive,
    Table,
    Text,
)
from aapa.engine.recipe.objective import dump_objective, parse_objective
from aapa.engine.recipe.problems import dotted
from aapa.engine.recipe.toml_text import toml_text

Objective = Annotated[Any, PlainValidator(parse_objective), PlainSerializer(dump_objective)]


class ModelTable(Table):
    """The policy's architecture, or where its weights come from."""

    source: Text = "scratch"
    """"scratch", a Hugging Face directory, or OWNER/NAME[@REVISION] on the hub, whose config.json decides the shape."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and activations; with bfloat16, gradients and the weights that are updated stay float32."""
    hidden_size: Count = 160
    """Width of the residual stream."""
    intermediate_size: Count = 448
    """Width of the feed-forward layers."""
    num_layers: Count = 3
    """Transformer layers."""
    num_attention_heads: Count = 2
    """Query heads."""
    num_key_value_heads: Count = 2
    """Key/value heads; fewer than query heads means grouped-query attention."""
    head_dim: Count | None = None
    """Width of a head; if not given, hidden_size / num_attention_heads."""
    max_position_embeddings: Count = 256
    """Longest prompt plus response, in tokens."""
    tie_word_embeddings: bool = True
    """Whether the output projection is the embedding matrix."""
    rope_theta: Positive = 10000.0
    """Base of the rotary position embedding."""
    initializer_range: Positive = 0.02
    """Standard deviation of the initial weights."""

    @classmethod
    def shape_fields(cls) -> list[str]:
        """Fields that a checkpoint's config.json decides."""
        return [name for name in cls.model_fields if name not in ("source", "dtype")]


class ParallelTable(Table):
    """How the policy is spread over ranks; data parallelism takes what is left of the world size."""

    tensor: Count = Field(1, json_schema_extra=CHANGEABLE)
    """Tensor-parallel ranks; divides heads, key/value heads and intermediate_size."""
    sequence: bool = Field(False, json_schema_extra=CHANGEABLE)
    """Sequence parallelism: the tensor-parallel ranks split norms and residuals by tokens; needs tensor > 1."""
    pipeline: Count = Field(1, json_schema_extra=CHANGEABLE)
    """Pipeline stages; divides num_layers."""
    virtual: Count = Field(1, json_schema_extra=CHANGEABLE)
    """Model chunks per stage, for the interleaved schedule; pipeline x virtual divides num_layers."""
    context: Count = Field(1, json_schema_extra=CHANGEABLE)
    """Context-parallel ranks, which split the tokens of a micro-batch; each holds the weights and works on a part."""
    distributed_optimizer: bool = Field(False, json_schema_extra=CHANGEABLE)
    """Splits optimizer states over the ranks that hold the same weights (ZeRO stage 1)."""
    overlap: bool = Field(False, json_schema_extra=CHANGEABLE)
    """Reduces gradients during the backward pass; with distributed_optimizer, gathers weights during the forward."""
    recompute: Literal["none", "selective", "full"] = Field("none", json_schema_extra=CHANGEABLE)
    """Activations computed again in the backward pass: those of the core attention (selective), or of whole layers."""
    offload: bool = Field(False, json_schema_extra=CHANGEABLE)
    """Optimizer states, gradients and frozen models leave the GPU in phases of a step that do not need them."""
    micro_batch_tokens: Count = Field(8192, json_schema_extra=CHANGEABLE)
    """The memory knob: most tokens of one forward and backward pass. Does not change the loss."""
    timeout_seconds: Count = Field(600, le=10**9, json_schema_extra=CHANGEABLE)
    """A collective that takes longer aborts the run."""
    threads: Count = Field(1, json_schema_extra=CHANGEABLE)
    """torch threads of each rank, on the CPU."""


class RolloutTable(Table):
    """How responses are sampled from the policy."""

    engine: Literal["auto", "transformers", "megatron"] = "auto"
    """"transformers": with a second copy of the weights; "megatron": the policy itself; "auto": by the layout."""
    temperature: Positive = 1.0
    """Sampling temperature; log-probabilities of rollouts are taken at the same one."""
    max_new_tokens: Count = 72
    """Length limit of a response; one that reaches it counts as truncated."""
    max_batch: Count = 256
    """Sequences decoded at a time."""
    memory_limit_gb: Positive = Field(8.0, json_schema_extra=CHANGEABLE)
    """An engine that needs a second copy of the weights refuses models larger than this."""


class DiscriminatorTable(Table):
    """The frozen discriminator that scores rollouts against expert responses; needed by anchored stages."""

    source: Text | None = None
    """Directory of a discriminator fitted before; if not given, one is fitted in the run."""
    kind: Annotated[str, AfterValidator(discriminator_kind)] = "sentence"
    """"sentence" (2.1): a head on a trunk; "polar" (2.2): a reward model; "cosine" (2.3); "package.module:Class"."""
    reward_model: Text | None = None
    """Kind "polar": directory of a sequence-classification model of one label; trunk, layer and fit are then unused."""
    fit_after: Name | None = None
    """Name of the stage after which it is fitted, or "start": on a policy that was given; not with a source."""
    trunk: Text = "base"
    """"base" (before any stage on examples), "stage_start" (as fit_after left it), or a checkpoint."""
    layer: int = -1
    """Hidden state that is read: a layer's number, or counted from the end if negative."""
    logprob_features: bool = False
    """Adds mean and least log-prob of a sentence under the trunk to its features; with the last layer only."""
    rank: Count = 128
    """R, the width sentences are projected to."""
    width: Count = 64
    """Hidden width of the scoring MLP."""
    temperature: Positive = 1.0
    """tau of the soft alignment with the expert's sentences."""
    loss: Literal["bradley_terry", "bce"] = "bradley_terry"
    """Pairwise or pointwise training loss (2.4)."""
    prompts: Count = 800
    """Training prompts it is fitted on."""
    rollouts_per_prompt: Count = 4
    """Policy responses per prompt, as negatives."""
    corruptions_per_prompt: CountOrZero = 4
    """Damaged expert responses per prompt, as negatives."""
    steps: Count = 800
    """Optimizer steps of the fit."""
    batch_size: Count = 256
    """Pairs per step of the fit."""
    learning_rate: Positive = 1e-3
    """Learning rate of the fit."""
    weight_decay: NotNegative = 0.01
    """Weight decay of the fit."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Fraction of the prompts kept for calibration and for the quality card."""
    cache_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type in which the experts' sentence states are kept; 16 bits halve the disk, and scores differ a little."""
    cache_verify: bool = Field(True, json_schema_extra=CHANGEABLE)
    """Whether the content of the whole expert cache is compared with its checksums each time that it is opened."""


class EvaluationTable(Table):
    """How policies are evaluated on held-out prompts, at every stage's end and in between."""

    split: Text = "dev"
    """The task's split that is evaluated on within stages, and that settings are chosen on."""
    prompts: Count = 256
    """Prompts of the split, from its start."""
    final_split: Text = "test"
    """The split of the figures in summary.json: at stage ends, and of a given policy at the start."""
    final_prompts: Count = 512
    """Prompts of the final split, from its start."""
    every: CountOrZero = Field(0, json_schema_extra=CHANGEABLE)
    """Steps between evaluations within a stage; 0 evaluates at stage ends only. A stage may have its own."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    seed: CountOrZero = 123
    """Seed of the sampling, the same for all policies."""
    samples: CountOrZero = Field(8, json_schema_extra=CHANGEABLE)
    """Responses kept for the report."""
    rewards: list[RewardTable] = Field(default_factory=list)
    """With own rows: reward functions that judge; if not given, those of the last stage that has some."""
    pass_at: float = 0.5
    """With own rows: a response passes where its weighted sum of rewards is at least this."""


class CheckpointTable(Table):
    """When the run saves what it needs to go on."""

    every: CountOrZero = Field(0, json_schema_extra=CHANGEABLE)
    """Steps between checkpoints; 0 saves at stage ends only."""
    keep: Count = Field(2, json_schema_extra=CHANGEABLE)
    """Newest checkpoints that are kept."""


EvaluationFigure = Literal[
    "pass_rate",
    "in_language",
    "true_quality",
    "proxy_reward",
    "reward",
    "length_ratio",
    "distinct_2",
    "truncated",
    "expert_logprob",
]


class StopTable(Table):
    """Ends a stage early, by a figure of its evaluations."""

    metric: EvaluationFigure = "pass_rate"
    """A figure of the evaluations on the split `evaluation.split`."""
    at_least: float | None = None
    """The stage ends when the figure is at least this."""
    at_most: float | None = None
    """The stage ends when the figure is at most this."""


class BestTable(Table):
    """Ends a stage with the best policy of its evaluations instead of the last one; every best so far stays on disk."""

    metric: EvaluationFigure = "pass_rate"
    """A figure of the evaluations on the split `evaluation.split`."""
    goal: Literal["max", "min"] = "max"
    """Whether more or less of it is better; of equals the first is taken."""


class StageTable(Table):
    """One stage of training, with a fresh optimizer."""

    name: Name
    """Names the stage in overrides, metrics and directories."""
    data: Literal["corpus", "examples"] = "examples"
    """"corpus": unlabelled text, as language modelling; "examples": prompts with expert responses."""
    steps: Count
    """Steps: a batch of prompts each, shared by the updates and epochs per rollout of the objective."""
    prompts_per_step: Count = 32
    """The batch-size knob: prompts (texts, on the corpus) per step over all ranks."""
    learning_rate: Positive
    """Peak learning rate."""
    warmup_steps: CountOrZero = 0
    """Steps of linear warm-up."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after the warm-up."""
    final_learning_rate_ratio: Fraction = 0.1
    """Learning rate at the stage's end over its peak, unless decay is constant."""
    weight_decay: NotNegative = 0.0
    """AdamW's decay; norms and biases are left out."""
    clip_grad: NotNegative = 1.0
    """Largest global gradient norm; 0 does not clip."""
    adam_beta1: BelowOne = 0.9
    """AdamW's first decay rate."""
    adam_beta2: BelowOne = 0.98
    """AdamW's second decay rate."""
    adam_eps: Positive = 1e-8
    """AdamW's epsilon."""
    evaluate_every: CountOrZero | None = None
    """Steps between evaluations within this stage, where they are not those of evaluation.every."""
    stop: StopTable | None = None
    """Ends the stage before its last step, by a figure of its evaluations."""
    best: BestTable | None = None
    """Ends the stage with the best policy of its evaluations."""
    rewards: list[RewardTable] = Field(default_factory=list)
    """Reward functions; their weighted sum is the reward."""
    objective: Objective
    """The loss: kind = "sft", "grpo", "chord" or "package.module:Class", and its hyperparameters."""


class Recipe(Table):
    """Everything that decides a run."""

    name: Name
    """Names the run and its directory."""
    seed: CountOrZero = 0
    """Seed of weights, sampling order and rollouts."""
    output: Text | None = Field(None, json_schema_extra=CHANGEABLE)
    """Run directory; if not given, runs/<name>."""
    model: ModelTable = ModelTable()
    data: DataTable = DataTable()
    parallel: ParallelTable = ParallelTable()
    rollout: RolloutTable = RolloutTable()
    discriminator: DiscriminatorTable | None = None
    rewards: RewardsTable = RewardsTable()
    evaluation: EvaluationTable = EvaluationTable()
    checkpoint: CheckpointTable = CheckpointTable()
    stages: Annotated[list[StageTable], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = consistency_problems(self)
        if problems:
            raise ValueError("\n".join(f"{dotted(path)}: {text}" for path, text in problems))
        return self

    def directory(self) -> Path:
        """The run directory."""
        return Path(self.output or f"runs/{self.name}")

    def table(self) -> dict[str, Any]:
        """The resolved recipe as plain values, defaults included; `parse_recipe` reads it back."""
        table = self.model_dump(mode="python")
        if self.model.source != "scratch":
            for field in self.model.shape_fields():
                del table["model"][field]
        return table

    def to_toml(self) -> str:
        """The resolved recipe as TOML."""
        return toml_text(self.table())

    def hash(self) -> str:
        """SHA-256 over every field that decides the outcome; runs of equal hash may continue each other."""
        decisive = {path: value for path, value in _flat(self.table()) if not _is_changeable(path)}
        text = json.dumps(decisive, sort_keys=True, ensure_ascii=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def resume_problems(self, stored: Recipe | dict[str, Any]) -> list[str]:
        """One line per field that differs from the recipe of the run directory and must not.

        Args:
            stored: that recipe, or its `table()`, which may come from a version with other fields.
        """
        table = stored.table() if isinstance(stored, Recipe) else stored
        before, now = dict(_flat(table)), dict(_flat(self.table()))
        return [
            f"{path}: expected {before.get(path)!r} as in the run directory, got {now.get(path)!r}"
            for path in dict.fromkeys([*now, *before])
            if before.get(path) != now.get(path) and not _is_changeable(path)
        ]


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Leaves of nested tables and arrays with their dotted paths; None and absent are the same."""
    if isinstance(value, dict):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), item) for index, item in enumerate(value)]
    else:
        return [] if value is None else [(path, value)]
    return [leaf for key, item in items for leaf in _flat(item, f"{path}.{key}" if path else key)]


def _is_changeable(path: str) -> bool:
    model: Any = Recipe
    for part in path.split("."):
        field = model.model_fields.get(part)
        if field is None:
            return False
        if field.json_schema_extra == CHANGEABLE:
            return True
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return False
    return False
