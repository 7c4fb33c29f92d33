"""Runs the stages of a recipe, from the run directory's last checkpoint if there is one."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aapa.engine import checkpoint
from aapa.engine.anchor_cost import AnchorCost
from aapa.engine.console import announce
from aapa.engine.course import StageCourse
from aapa.engine.discriminator_stage import START, check_unchanged, fit_discriminator
from aapa.engine.errors import Interrupted, TrainingFault, UserError
from aapa.engine.evaluate import Evaluation, evaluate
from aapa.engine.hf_directory import SafetensorsWeights
from aapa.engine.metrics import MetricsLog, SampleLog
from aapa.engine.policy import parallel as groups
from aapa.engine.policy.optimizer import AdamSettings
from aapa.engine.policy.parallel import Parallel
from aapa.engine.progress import StageProgress
from aapa.engine.recipe import Recipe
from aapa.engine.report import write_report
from aapa.engine.run import Run, StageRun
from aapa.engine.run_output import check_output
from aapa.engine.setup import begin_directory, open_run, open_stage, start_groups
from aapa.engine.step import training_step
from aapa.engine.summary import SummaryFile


def train(recipe: Recipe, output: Path) -> None:
    """Train every stage of a recipe into the run directory `output`; goes on where an earlier start stopped.

    Raises:
        UserError: something in the recipe, the data or the directory that the user can put right.
        Interrupted: SIGTERM or Ctrl-C arrived; a checkpoint of the last finished step was saved.
        TrainingFault: a loss, score or gradient was not finite.
    """
    torch.set_num_threads(recipe.parallel.threads)
    parallel = start_groups(recipe.parallel)
    try:
        _check_output(output, parallel)
        run = open_run(recipe, output, parallel, trains=True)
        with _stop_signal() as stop, closing(run.pool):
            Trainer(run, stop).train()
    finally:
        groups.stop()


def _check_output(output: Path, parallel: Parallel) -> None:
    """Rank 0 looks and all ranks refuse: another node may not see the directory."""
    problem = None
    try:
        if parallel.is_main:
            check_output(output)
    except UserError as error:
        problem = str(error)
    if problem := parallel.from_main(problem):
        raise UserError(problem)


class StopRequest:
    """Set by SIGTERM or Ctrl-C; looked at between steps. A second Ctrl-C does not wait for the step's end."""

    def __init__(self) -> None:
        self.requested = False

    def __call__(self, number: int, *_: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def _stop_signal() -> Iterator[StopRequest]:
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # an embedding program minds its own signals
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Trainer:
    """The loop over stages and steps, and the position in it."""

    def __init__(self, run: Run, stop: StopRequest) -> None:
        self.run, self.stop = run, stop
        self.main = run.parallel.is_main
        self.began = time.monotonic()
        self.stage_index = self.step = self.global_step = 0
        self.tokens = self.seconds_before = 0.0
        self.start_logprob: dict[str, float] = {}
        self.discriminator_hash: str | None = None
        self.course = StageCourse()
        self.resumed = self._resume()
        begin_directory(run, fresh=self.resumed is None)
        position = self.resumed.state if self.resumed else {}
        self.metrics = MetricsLog(run.directory, position.get("metrics")) if self.main else None
        self.samples = SampleLog(run.directory, position.get("samples")) if self.main else None
        self.summary = SummaryFile(run.directory, rows=position.get("summary", []))

    def train(self) -> None:
        """All stages from the current position, then the final policy, the table and the report."""
        stages = self.run.recipe.stages
        if self.global_step == 0 and self._fits_after(START):
            self.run.sync_engine()
            self.discriminator_hash = fit_discriminator(self.run)
        while self.stage_index < len(stages):
            stage = open_stage(self.run, self.stage_index)
            self.run.sync_engine()
            if self.global_step == 0 and self.run.recipe.model.source != "scratch":
                # A policy that was given is the one to compare with; one from scratch has nothing to show yet.
                self._evaluate_final(stage, "start")
            self._stage(stage)
        self.run.write_policy(self.run.directory / "final", original_types=True)
        if self.main:
            assert self.metrics is not None and self.samples is not None
            self.metrics.close()
            self.samples.close()
            write_report([self.run.directory], self.run.directory / "report.html")
        self.run.parallel.barrier()

    def _stage(self, stage: StageRun) -> None:
        policy, table = self.run.policy, stage.table
        policy.start_stage(
            AdamSettings(table.weight_decay, table.clip_grad, table.adam_beta1, table.adam_beta2, table.adam_eps)
        )
        if self.step > 0:
            self._load_optimizer()
        self._hold_discriminator(stage)
        cost = AnchorCost()
        every = self.run.recipe.evaluation.every if table.evaluate_every is None else table.evaluate_every
        with StageProgress(table.name, table.steps, start_step=self.step, rank=self.run.parallel.rank) as progress:
            while self.step < table.steps and not self.course.stopped:
                figures = training_step(self.run, stage, self.step)
                cost.add(figures)
                self._check_finite(figures)
                self.step += 1
                self.global_step += 1
                self.tokens += figures.pop("tokens")
                self._log("train", table.name, figures)
                progress.update(self.step, figures)
                last = self.step == table.steps
                if every and (self.course.judges(table) if last else self.step % every == 0):
                    evaluation = self._evaluate_step(stage)
                    progress.update(self.step, evaluation)
                    self._judge(stage, evaluation)
                self._maybe_save(table.steps)
        stage.failures.end()
        if self.main and cost.seconds["scoring"]:
            announce(f"{table.name}: {cost.text(stage.shares_reference(self.run))}")
        self._end_stage(stage)

    def _judge(self, stage: StageRun, figures: dict[str, float]) -> None:
        """Keep the policy if it is the stage's best so far, and end the stage if its stop rule says so."""
        table = stage.table
        if self.course.improves(table, figures, self.step):
            self.run.write_policy(self._best_directory(table.name, self.step))
            self.run.parallel.barrier()
        if self.course.stops(table, figures) and self.main:
            announce(f"{table.name}: ended by its stop rule after step {self.step}")

    def _best_directory(self, name: str, step: int) -> Path:
        """One a step: a run that goes on from an earlier checkpoint finds the best that this knows of."""
        return self.run.directory / "stages" / f"{name}-best" / f"{step:06d}"

    def _hold_discriminator(self, stage: StageRun) -> None:
        """Remember the discriminator of the first anchored stage, and refuse another afterwards."""
        if stage.scorer is None:
            return
        if self.discriminator_hash is None:
            self.discriminator_hash = stage.scorer.discriminator.hash
        check_unchanged(self.run, self.discriminator_hash)

    def _end_stage(self, stage: StageRun) -> None:
        """Keep the stage's policy, fit the discriminator if it is due, evaluate, save."""
        name, policy = stage.table.name, self.run.policy
        if self.course.best_step is not None and self.course.best_step != self.step:
            best = self._best_directory(name, self.course.best_step)
            policy.load_weights(SafetensorsWeights(best), source=str(best))
            self.run.sync_engine()
            if self.main:
                announce(f"{name}: goes on with the policy of step {self.course.best_step}, its best")
        if self.discriminator_hash is not None:
            check_unchanged(self.run, self.discriminator_hash)
        self.run.write_policy(self.run.directory / "stages" / name)
        self.run.parallel.barrier()
        self.course = StageCourse(stopped=True)
        self._save()  # what follows takes a while, and may be killed
        if self._fits_after(name):
            self.discriminator_hash = fit_discriminator(self.run)
        self._evaluate_final(stage, name)
        self.stage_index += 1
        self.step = 0
        self.course = StageCourse()
        self._save()

    def _fits_after(self, name: str) -> bool:
        settings = self.run.recipe.discriminator
        return settings is not None and settings.source is None and settings.fit_after == name

    def _maybe_save(self, steps: int) -> None:
        stop = self._stop_agreed()
        every = self.run.recipe.checkpoint.every
        if stop or (every and self.step % every == 0 and self.step < steps):
            self._save()
        if stop:
            raise Interrupted(f"saved step {self.global_step}; start the same command again to go on")

    def _stop_agreed(self) -> bool:
        """Whether any rank was asked to stop: all stop after the same step."""
        if torch.distributed.get_world_size() == 1:
            return self.stop.requested
        flag = torch.tensor(int(self.stop.requested), device=self.run.parallel.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return bool(flag)

    def _check_finite(self, figures: dict[str, Any]) -> None:
        loss = figures["loss/total"]
        if not math.isfinite(loss):
            raise TrainingFault(f"loss/total: expected a finite number at step {self.step}, got {loss}")

    def _log(self, kind: Any, stage: str, figures: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.write(kind, stage, self.step, self.global_step, figures)

    def _evaluate_step(self, stage: StageRun) -> dict[str, float]:
        settings = self.run.recipe.evaluation
        data = self.run.evaluation_data(settings.split, settings.prompts)
        result = evaluate(self.run, data, settings.split, stage.scorer, stage.table.name, self.step)
        return self._log_evaluation(stage.table.name, result)

    def _evaluate_final(self, stage: StageRun, name: str) -> None:
        """Evaluate on the final split and add a row to the summary."""
        settings = self.run.recipe.evaluation
        split = settings.final_split
        data = self.run.evaluation_data(split, settings.final_prompts)
        result = evaluate(self.run, data, split, stage.scorer, name, self.step)
        self._log_evaluation(name, result)
        logprob = result.figures.get("expert_logprob")
        drift = None if logprob is None else logprob - self.start_logprob.setdefault(split, logprob)
        seconds = self.seconds_before + time.monotonic() - self.began
        self.summary.add(self.run.recipe, name, result, drift, self.tokens, seconds)
        if self.main:
            self.summary.write()
            announce(self.summary.rows[-1])

    def _log_evaluation(self, stage: str, result: Evaluation) -> dict[str, float]:
        figures = {f"eval/{name}": value for name, value in result.figures.items()}
        self._log("eval", stage, {**figures, "split": result.split})
        if self.samples is not None:
            for sample in result.samples:
                self.samples.write(sample)
        return figures

    def _save(self) -> None:
        """A checkpoint of the current position; a collective."""
        policy = self.run.policy
        state = {
            "recipe": self.run.recipe.table(),
            "stage_index": self.stage_index,
            "step": self.step,
            "course": asdict(self.course),
            "global_step": self.global_step,
            "optimizer_steps": policy.optimizer.steps if policy.optimizer else 0,
            "tokens": self.tokens,
            "seconds": self.seconds_before + time.monotonic() - self.began,
            "start_logprob": self.start_logprob,
            "discriminator": self.discriminator_hash,
            "metrics": self.metrics.position() if self.metrics else None,
            "samples": self.samples.position() if self.samples else None,
            "summary": self.summary.rows,
        }
        checkpoint.save(
            self.run.directory / "checkpoints",
            self.global_step,
            state,
            # A stage begins with an optimizer of its own.
            lambda directory: policy.save(directory, optimizer=self.step > 0),
            self.run.recipe.checkpoint.keep,
            self.run.parallel,
        )

    def _resume(self) -> checkpoint.Checkpoint | None:
        """Go to the position of the newest valid checkpoint, with its weights."""
        folder = self.run.directory / "checkpoints"
        found, refused = self.run.parallel.from_main(checkpoint.latest(folder) if self.main else None)
        if self.main:
            for line in refused:
                announce(f"{line}; an earlier one is looked for")
        if found is None and refused:
            raise UserError(
                f"{folder}: expected a valid checkpoint, got damaged ones only:\n"
                + "\n".join(refused)
                + "\nchoose another --output, or remove them to begin anew"
            )
        if found is None:
            return None
        problems = self.run.recipe.resume_problems(found.state["recipe"])
        if problems:
            raise UserError("\n".join([*problems, f"{self.run.directory}: choose another --output for another recipe"]))
        state = found.state
        self.stage_index, self.step, self.global_step = (
            state["stage_index"],
            state["step"],
            state["global_step"],
        )
        self.course = StageCourse(**state["course"])
        self.tokens, self.seconds_before = state["tokens"], state["seconds"]
        self.start_logprob = dict(state["start_logprob"])
        self.discriminator_hash = state["discriminator"]
        self.run.policy.load(found.path)
        if self.main:
            announce(f"going on from {found.path}")
        return found

    def _load_optimizer(self) -> None:
        assert self.resumed is not None and self.run.policy.optimizer is not None
        self.run.policy.load_optimizer(self.resumed.path)
        self.run.policy.optimizer.set_steps(self.resumed.state["optimizer_steps"])
