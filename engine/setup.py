"""Builds the parts of a run and of a stage from the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig

from aapa.engine.anchor_span import check_spans
from aapa.engine.console import announce
from aapa.engine.data import Sampler, TokenizedExample, tokenize_corpus, tokenized
from aapa.engine.data_files import FileTask, check_same_rows, judging_rewards, uses_files
from aapa.engine.discriminator_stage import check_layer, open_scorer
from aapa.engine.errors import UserError
from aapa.engine.hf_directory import Origin, SafetensorsWeights, read_config, read_tokenizer
from aapa.engine.hub import local_directory
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.frozen import FrozenModel, model_hash
from aapa.engine.policy.megatron import MegatronPolicy
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.settings import TrainSettings
from aapa.engine.recipe import ParallelTable, Recipe, StageTable
from aapa.engine.recipe.checks import checkpoint_problems
from aapa.engine.recipe.problems import raise_problems
from aapa.engine.reward_model import open_directory
from aapa.engine.rewards import FailureWindow, Rewards
from aapa.engine.rollout import build_engine, chosen_engine
from aapa.engine.run import DTYPES, Run, StageRun
from aapa.engine.run_output import write_recipe
from aapa.engine.scoring import Scorer
from aapa.engine.scratch import scratch_config
from aapa.engine.tasks import load_task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def start_groups(table: ParallelTable) -> Parallel:
    """Join the job and cut it into the groups of a recipe's layout."""
    return groups.start(
        table.tensor,
        table.pipeline,
        table.timeout_seconds,
        context=table.context,
        sequence=table.sequence,
        virtual=table.virtual,
        offload=table.offload,
    )


def train_settings(table: ParallelTable) -> TrainSettings:
    """What of a recipe's layout concerns the policy's training alone."""
    return TrainSettings(table.distributed_optimizer, table.overlap, table.recompute)


def open_run(recipe: Recipe, directory: Path, parallel: Parallel, *, trains: bool = False) -> Run:
    """Task, tokenizer, policy and rollout engine of a recipe; writes nothing.

    Args:
        trains: whether the directory is that of a run, which gets `quarantine.jsonl` where its rows are refused.
    """
    _check_layout(recipe, parallel)
    task = None if uses_files(recipe) else load_task(recipe.data.task, recipe.data.options)
    origin = None
    if recipe.model.source == "scratch":
        assert task is not None, "rows of one's own need a tokenizer, and a recipe without one is refused"
        tokenizer = task.tokenizer()
        config: PretrainedConfig = scratch_config(recipe.model, tokenizer)
        weights: Mapping[str, Tensor] = scratch_weights(config, recipe.seed)
    else:
        source = local_directory(recipe.model.source, parallel)
        raise_problems(checkpoint_problems(recipe.parallel, str(source)), str(source))
        config = read_config(source)
        weights = SafetensorsWeights(source, config=config)
        origin = Origin.of(weights)
        tokenizer = read_tokenizer(source, config)
    check_tokenizer(tokenizer)
    if task is None:
        # A run that cannot go on is left as it is.
        writes = trains and parallel.is_main and not (directory / "checkpoints").is_dir()
        where, context = (directory if writes else None), int(config.max_position_embeddings)
        task = FileTask(recipe, tokenizer, context, quarantine=where, quiet=not parallel.is_main)
        check_same_rows(task, directory)
        if task.changed_end and origin is not None:
            origin = origin.ending_with(tokenizer.eos_token, tokenizer.eos_token_id)
    dtype = DTYPES[recipe.model.dtype]
    policy = MegatronPolicy(config, parallel, dtype, train_settings(recipe.parallel))
    policy.load_weights(weights, source="model.source")
    engine, name = None, chosen_engine(recipe.rollout.engine, parallel)
    if parallel.is_leader or name == "megatron":
        engine = build_engine(
            name,
            config,
            eos=tokenizer.eos_token_id,
            pad=padding_token(tokenizer),
            dtype=dtype,
            device=parallel.device,
            max_batch=recipe.rollout.max_batch,
            memory_limit_gb=recipe.rollout.memory_limit_gb,
            policy=policy,
        )
    run = Run(recipe, directory, parallel, task, tokenizer, policy, engine, origin)
    _open_judges(run)
    _check_evaluation(run)
    return run


def _open_judges(run: Run) -> None:
    """Reward functions that judge rows of the user's own, in the process that will call them."""
    if isinstance(run.task, FileTask) and run.parallel.is_leader:
        tables, field = judging_rewards(run.recipe)
        if tables:
            run.task.rewards = run.pool.open(tables, field, run.task.columns)


def begin_directory(run: Run, fresh: bool) -> None:
    """The resolved recipe, and for a run that begins from scratch its initial policy, in the run directory."""
    parallel = run.parallel
    if parallel.is_main:
        try:
            run.directory.mkdir(parents=True, exist_ok=True)
            write_recipe(run.recipe, run.directory)
            if isinstance(run.task, FileTask):
                run.task.write_facts(run.directory)
        except OSError as error:
            raise UserError(f"output: expected a directory to write to, got {run.directory}: {error}") from None
    if fresh and run.recipe.model.source == "scratch":
        run.write_policy(run.initial_directory)
    parallel.barrier()


def _check_evaluation(run: Run) -> None:
    """Look at both splits, the anchors' spans and the discriminator's layer or reward model before the first stage."""
    settings = run.recipe.evaluation
    for field, split, count in (
        ("split", settings.split, settings.prompts),
        ("final_split", settings.final_split, settings.final_prompts),
    ):
        try:
            data = run.evaluation_data(split, count)
        except UserError as error:
            raise UserError(f"evaluation.{field}: {error}") from None
        if len(data) < run.parallel.data:
            raise UserError(
                f"evaluation.{field}: expected a prompt for each of the {run.parallel.data} replicas, "
                f"got {len(data)} in {split!r}"
            )
    check_spans(run.recipe, lambda: run.tokenizer)
    table = run.recipe.discriminator
    if table is not None and table.reward_model is not None:
        open_directory(Path(table.reward_model))
    elif table is not None and table.source is None:
        check_layer(table.layer, int(run.policy.hf.num_hidden_layers), run.parallel.pipeline)


def open_stage(run: Run, index: int) -> StageRun:
    """Data, sampler, rewards, reference and discriminator of a stage."""
    table: StageTable = run.recipe.stages[index]
    data = stage_data(run, table)
    rewards = Rewards(())
    if run.parallel.is_leader:
        columns = run.task.columns if isinstance(run.task, FileTask) else None
        rewards = run.pool.open(table.rewards, f"stages.{index}.rewards", columns)
    scorer = None
    anchor = table.objective.anchor
    if anchor is not None and anchor.active:
        scorer = open_scorer(run, anchor)
        run.parallel.barrier()
    reference = None
    if table.objective.needs_reference:
        reference = _reference(run, stage_start(run, index), scorer)
    sampler, refills, experts = (
        Sampler(len(data), run.recipe.seed, f"{table.name}{stream}") for stream in ("", "/refills", "/experts")
    )
    if (table.objective.needs_rewards or scorer is not None) and not isinstance(run.task, FileTask):
        _check_context(run, data)
    if scorer is not None:
        steps = (sampler.batch(step, table.prompts_per_step) for step in range(table.steps))
        drawn = sorted({i for draws in steps for i in run.mine(draws)})
        scorer.prepare([data[i] for i in drawn])
        # Ranks of a replica must agree on what is missing, so nobody writes while another still opens the cache.
        run.parallel.barrier()
    failures = FailureWindow(run.recipe.rewards.window, run.recipe.rewards.max_failed_fraction)
    return StageRun(index, table, data, sampler, refills, experts, rewards, reference, scorer, failures)


def _check_context(run: Run, data: Sequence[TokenizedExample]) -> None:
    longest = max(len(example.prompt) for example in data)
    limit = int(run.policy.hf.max_position_embeddings)
    if longest + run.recipe.rollout.max_new_tokens > limit:
        raise UserError(
            f"rollout.max_new_tokens: expected at most {limit - longest} beside the longest prompt of {longest} tokens "
            f"in a context of {limit}, got {run.recipe.rollout.max_new_tokens}"
        )


def stage_data(run: Run, table: StageTable) -> Sequence[TokenizedExample]:
    """The tokenized training data of a stage."""
    longest = run.policy.hf.max_position_embeddings
    if table.data == "corpus":
        return tokenize_corpus(run.task.corpus(), run.tokenizer, longest)
    return tokenized(run.task.examples("train"), run.tokenizer, longest, "train")


def stage_start(run: Run, index: int) -> Path:
    """The directory with the weights that a stage starts from."""
    if index > 0:
        return run.directory / "stages" / run.recipe.stages[index - 1].name
    return run.initial_directory


def _reference(run: Run, directory: Path, scorer: Scorer | None) -> FrozenModel:
    """The frozen policy of the KL term; the discriminator's trunk where that is the same model."""
    config = read_config(directory)
    weights = SafetensorsWeights(directory, config=config)
    trunk = None if scorer is None else scorer.trunk
    if trunk is not None and trunk.model_hash == model_hash(config, weights):
        if run.parallel.is_main:
            announce("the KL reference is the discriminator's trunk: one copy, and one forward pass, serve both")
        return trunk
    return FrozenModel(
        config,
        weights,
        run.parallel,
        run.policy.dtype,
        run.recipe.parallel.micro_batch_tokens,
    )


def scratch_weights(config: PretrainedConfig, seed: int) -> dict[str, Tensor]:
    """transformers' own initialisation under a seed, so that weights do not depend on the parallel layout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return dict(model.state_dict())


def check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Refuse a tokenizer without an end of sequence."""
    if len(tokenizer) == 0:
        raise UserError("model.source: expected a directory with a tokenizer, got none")
    if tokenizer.eos_token_id is None:
        raise UserError("tokenizer.eos_token_id: expected a token, got none; set it in the tokenizer's directory")


def padding_token(tokenizer: PreTrainedTokenizerFast) -> int:
    """What fills up batches of rollouts, where nobody looks: Llama's tokenizers have no token for it."""
    pad = tokenizer.pad_token_id
    return int(tokenizer.eos_token_id if pad is None else pad)


def _check_layout(recipe: Recipe, parallel: Parallel) -> None:
    """What only the number of processes can tell."""
    for index, stage in enumerate(recipe.stages):
        if stage.prompts_per_step % parallel.data:
            raise UserError(
                f"stages.{index}.prompts_per_step: expected a multiple of the {parallel.data} data-parallel "
                f"replicas, got {stage.prompts_per_step}"
            )
        groups = stage.prompts_per_step // parallel.data
        if groups % stage.objective.updates_per_rollout:
            raise UserError(
                f"stages.{index}.objective.updates_per_rollout: expected a divisor of the {groups} prompts of a "
                f"replica, got {stage.objective.updates_per_rollout}"
            )
        experts = stage.objective.expert_batch_size
        shares = parallel.data * stage.objective.updates_per_rollout
        if experts is not None and experts % shares:
            raise UserError(
                f"stages.{index}.objective.expert_batch_size: expected a multiple of {shares}, {parallel.data} "
                f"data-parallel replicas times the updates per rollout, got {experts}"
            )
        if stage.objective.scale == "batch" and parallel.data > 1:
            raise UserError(
                f"stages.{index}.objective.scale: expected 'group' or 'none' with {parallel.data} data-parallel "
                "replicas, got 'batch', whose standard deviation would be each replica's own"
            )
