"""The program `aapa`. Importing it, and asking it for help, loads no torch."""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path

import aapa
from aapa.engine.errors import Interrupted, TrainingFault, UserError

DONE, OTHER, BAD_INPUT, INTERRUPTED, FAULT = 0, 1, 2, 3, 4

DESCRIPTION = """\
Post-training with an anchor: SFT and GRPO on a Megatron-core policy, held close to offline expert responses.

exit codes: 0 done, 2 bad input, 3 interrupted after a save, 4 training fault, 1 anything else
"""

TRAIN_DESCRIPTION = """\
Trains the stages of a recipe, alone or under torchrun (`torchrun --no-python aapa train RECIPE`). A run
directory that holds a checkpoint of the same recipe is continued. Any key of the recipe can be given on the
command line:

  --seed 1   --stages.0.steps 20   --stages.sft.steps 20   --rollout.temperature=0.9   --model.source DIR

Values are read as TOML, and as plain text where they are not TOML. Stages go by number or by name.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program.

    Args:
        argv: the words after the program's name; those of this process by default.

    Returns:
        The exit code: 0 done, 2 bad input, 3 interrupted after a save, 4 training fault, 1 anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _run(words)
    except SystemExit as error:  # argparse: help or a usage error, already printed
        return error.code if isinstance(error.code, int) else OTHER
    except Interrupted as error:
        _say(f"interrupted: {error}")
        return INTERRUPTED
    except KeyboardInterrupt:
        _say("interrupted; what was saved before stays")
        return OTHER
    except TrainingFault as error:
        _say(f"training fault: {error}")
        return FAULT
    except Exception as error:
        if _is_bad_input(error):
            _say(str(error))
            return BAD_INPUT
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            _say(f"expected a shorter path, got {str(error.filename)[:80]!r}…")
            return BAD_INPUT
        traceback.print_exc()
        return OTHER
    return DONE


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "≥" must not end a run
    sys.exit(main())


def _is_bad_input(error: Exception) -> bool:
    """`UserError`, or a ValueError in the house's form, which packages below the engine raise."""
    if isinstance(error, UserError):
        return True
    return type(error) is ValueError and re.search(r"\S: expected .+, got ", str(error), re.DOTALL) is not None


def _say(text: str) -> None:
    rank = f"[rank {os.environ['RANK']}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    for line in text.splitlines():
        print(f"aapa: {rank}{line}", file=sys.stderr, flush=True)


def _run(words: list[str]) -> None:
    parser = _parser(reference="train" in words[:1])
    overrides: list[str] = []
    if words[:1] in (["train"], ["eval"], ["plan"]) or (
        words[:1] == ["discriminator"] and words[1:2] in (["fit"], ["refresh"])
    ):
        words, overrides = _split_overrides(words)
    arguments = parser.parse_args(words)
    # A user's own modules, named by dotted paths, may lie in the current directory. It goes to the end of the
    # path: in front, a checkout's folders would hide installed packages of the same names.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if arguments.command == "train":
        _train(arguments, overrides)
    elif arguments.command == "demo":
        from aapa.engine.demo import run_demo

        run_demo(arguments.output, arguments.full, arguments.seeds)
    elif arguments.command == "eval":
        from aapa.engine.evaluate_command import evaluate_policy

        evaluate_policy(arguments.recipe, overrides, arguments.policy, arguments.rows or [], arguments.output)
    elif arguments.command == "plan":
        _plan(arguments, overrides)
    elif arguments.command == "convert":
        _convert(arguments)
    elif arguments.command == "discriminator":
        _discriminator(arguments, overrides)
    else:
        from aapa.engine.report import write_report

        print(write_report(arguments.runs, arguments.output))


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from aapa.engine.check import check_run, recipe_notes
    from aapa.engine.recipe import load_recipe
    from aapa.engine.run_output import check_output

    recipe = load_recipe(arguments.recipe, overrides)
    output = arguments.output or recipe.directory()
    if arguments.check:
        check_output(Path(output))
        for line in [*check_run(recipe), *recipe_notes(recipe)]:
            print(line)
        stages = "1 stage" if len(recipe.stages) == 1 else f"{len(recipe.stages)} stages"
        print(f"{arguments.recipe}: ok, {stages}, run directory {output}")
        return
    from aapa.engine.trainer import train

    if os.environ.get("RANK", "0") == "0":
        for line in recipe_notes(recipe):
            print(line)
    train(recipe, output)


def _discriminator(arguments: argparse.Namespace, overrides: list[str]) -> None:
    if arguments.action == "score":
        from aapa.engine.discriminator_score import score

        score(arguments.discriminator, arguments.data, arguments.output)
        return
    from aapa.engine import discriminator_command as command
    from aapa.engine.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, overrides)
    run = arguments.run or recipe.directory()
    if arguments.action == "fit":
        command.fit(recipe, run, arguments.output, arguments.overwrite)
    else:
        command.refresh(recipe, run, command.DriftLimits(arguments.max_auc_drop, arguments.max_shift))


def _plan(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from aapa.engine.plan.command import plan_command

    plan_command(
        arguments.recipe,
        overrides,
        arguments.gpu,
        arguments.gpus,
        prompt_tokens=arguments.prompt_tokens,
        best=arguments.best,
        as_given=arguments.as_given,
        results=arguments.results,
        json_output=arguments.json,
    )


def _convert(arguments: argparse.Namespace) -> None:
    from aapa.engine.convert import convert

    if arguments.origin == arguments.to:
        raise UserError(f"--to: expected another format than --from, got {arguments.to!r} twice")
    convert(
        arguments.source,
        arguments.target,
        arguments.to,
        arguments.tp,
        arguments.pp,
        arguments.config,
        arguments.unverified,
    )


# Words of the program's own among the overrides, and how many words each takes.
OWN_FLAGS = {
    "--check": 0,
    "--output": 1,
    "--help": 0,
    "--run": 1,
    "--overwrite": 0,
    "--max-auc-drop": 1,
    "--max-shift": 1,
    "--policy": 1,
    "--rows": 1,
    "--gpu": 1,
    "--gpus": 1,
    "--prompt-tokens": 1,
    "--best": 1,
    "--as-given": 0,
    "--results": 1,
    "--json": 0,
}


def _split_overrides(words: list[str]) -> tuple[list[str], list[str]]:
    """Separates recipe keys from the program's own words; a key takes the next word unless it has an `=`."""
    own: list[str] = []
    overrides: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name = word.partition("=")[0]
        if not word.startswith("--") or name in OWN_FLAGS:
            own.append(word)
            if OWN_FLAGS.get(word) and rest:
                own.append(rest.pop(0))
        else:
            overrides.append(word)
            if "=" not in word and rest:
                overrides.append(rest.pop(0))
    return own, overrides


def _parser(reference: bool) -> argparse.ArgumentParser:
    """The command line's grammar; the recipe reference is only made where it may be shown."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("aapa", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"aapa {aapa.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train the stages of a recipe, or go on with a run",
        description=TRAIN_DESCRIPTION,
        formatter_class=raw,
        allow_abbrev=False,
        usage="aapa train RECIPE [--output DIR] [--check] [--KEY VALUE]…",
    )
    train.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe of the package")
    train.add_argument("--output", type=Path, metavar="DIR", help="run directory (default: runs/<name>)")
    train.add_argument("--check", action="store_true", help="validate recipe, model, rows and rewards, and stop")
    if reference:
        train.epilog = _train_epilog()

    _add_eval(commands)
    demo = commands.add_parser(
        "demo",
        help="the embedded demonstration: staged training, end to end, on a CPU",
        description="Trains and compares plain and anchored pipelines on a small instruction-following task.",
        allow_abbrev=False,
    )
    demo.add_argument(
        "--full", action="store_true", help="the exact reward, the rivals and three seeds too; an hour and more"
    )
    demo.add_argument("--output", type=Path, default=Path("runs/demo"), metavar="DIR", help="default: runs/demo")
    demo.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds to run (default: the demo's own)")

    _add_plan(commands)
    _add_convert(commands)
    _add_discriminator(commands)
    report = commands.add_parser(
        "report",
        help="an HTML page of one run, or comparing several",
        description="Writes one self-contained HTML page (figures, curves, samples) and prints its path.",
        allow_abbrev=False,
    )
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directory")
    report.add_argument("--output", type=Path, metavar="FILE", help="default: report.html in the first run directory")
    return parser


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = commands.add_parser(
        "eval",
        help="judge a policy: of a run, of a checkpoint, or any Hugging Face directory",
        description="Samples a response per prompt, judges them with the recipe's rewards or task, prints the figures.",
        allow_abbrev=False,
        usage="aapa eval RECIPE [--policy DIR] [--rows FILE]… [--output DIR] [--KEY VALUE]…",
    )
    action.add_argument("recipe", metavar="RECIPE", help="a TOML file, a recipe of the package, or a run directory")
    action.add_argument(
        "--policy", metavar="DIR", help="model directory, checkpoint, run, or OWNER/NAME (default: the run's final/)"
    )
    action.add_argument(
        "--rows", action="append", metavar="FILE", help="rows to judge on, all of them (default: the recipe's split)"
    )
    action.add_argument("--output", type=Path, metavar="DIR", help="also write summary.json and samples.jsonl there")


def _add_plan(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = commands.add_parser(
        "plan",
        help="memory and time of a recipe on GPUs that you do not have yet, and the layouts that fit",
        description="Estimates memory per rank and phase, communication, and time of a step; needs no GPU.",
        allow_abbrev=False,
        usage="aapa plan RECIPE --gpu NAME --gpus N [--json] [--KEY VALUE]…",
    )
    action.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe of the package")
    action.add_argument("--gpu", required=True, metavar="NAME", help="a100-80gb, h100-80gb, h200 or b200")
    action.add_argument("--gpus", required=True, type=int, metavar="N", help="how many of them, in all machines")
    action.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="length of prompts (default: 512)")
    action.add_argument("--best", type=int, default=5, metavar="N", help="layouts that are shown (default: 5)")
    action.add_argument("--as-given", action="store_true", help="look at the recipe's own layout, and at no other")
    action.add_argument(
        "--results", type=Path, metavar="DIR", help="measurements (JSON lines) that calibrate the estimate"
    )
    action.add_argument("--json", action="store_true", help="print JSON")


def _add_convert(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    action = commands.add_parser(
        "convert",
        help="weights between Hugging Face's format and Megatron's",
        description="Converts weights, bit by bit. Tensors that are missing, unknown or misshapen are refused by name.",
        allow_abbrev=False,
        usage="aapa convert --from hf|megatron --to megatron|hf SRC DST [--tp N] [--pp N]",
    )
    formats = ("hf", "megatron")
    action.add_argument("source", type=Path, metavar="SRC", help="a directory")
    action.add_argument("target", type=Path, metavar="DST", help="a directory that does not exist yet")
    action.add_argument("--from", dest="origin", choices=formats, required=True, help="format of SRC")
    action.add_argument("--to", choices=formats, required=True, help="format of DST")
    action.add_argument("--tp", type=int, default=1, metavar="N", help="tensor-parallel ranks to cut for (default: 1)")
    action.add_argument("--pp", type=int, default=1, metavar="N", help="pipeline stages to cut for (default: 1)")
    action.add_argument("--config", type=Path, metavar="DIR", help="config.json and tokenizer, where SRC has none")
    action.add_argument("--unverified", action="store_true", help="read a Megatron checkpoint without a manifest")


def _add_discriminator(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "discriminator",
        help="fit a discriminator outside of a run, refresh its experts, or score texts with it",
        description="Fits, refreshes and applies frozen discriminators.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    texts = {
        "fit": "fit the recipe's discriminator on the policy that fit_after left in the run directory, and freeze it",
        "refresh": "embed new and changed experts, and refuse where the discriminator does not fit them any more",
    }
    own = {"fit": "[--output DIR] [--overwrite]", "refresh": "[--max-auc-drop X] [--max-shift SIGMA]"}
    for name, text in texts.items():
        action = actions.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            usage=f"aapa discriminator {name} RECIPE [--run DIR] {own[name]} [--KEY VALUE]…",
        )
        action.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a recipe of the package")
        action.add_argument("--run", type=Path, metavar="DIR", help="run directory (default: runs/<name>)")
        if name == "fit":
            action.add_argument("--output", type=Path, metavar="DIR", help="default: the run's discriminator/")
            action.add_argument("--overwrite", action="store_true", help="replace a discriminator that is there")
        else:
            action.add_argument("--max-auc-drop", type=float, default=0.03, metavar="X", help="default: 0.03")
            action.add_argument("--max-shift", type=float, default=0.25, metavar="SIGMA", help="default: 0.25")
    action = actions.add_parser(
        "score",
        help="score responses against experts, sentence by sentence",
        description='Scores a JSONL file of {"prompt": …, "response": …, "expert": …}.',
        allow_abbrev=False,
    )
    action.add_argument("--discriminator", type=Path, required=True, metavar="DIR", help="a frozen discriminator")
    action.add_argument("--data", type=Path, required=True, metavar="FILE", help="JSONL")
    action.add_argument("--output", type=Path, metavar="FILE", help="JSONL, with a histogram beside it; default: print")


def _train_epilog() -> str:
    from aapa.engine.recipe import recipe_reference, shipped_recipes

    recipes = textwrap.fill(
        f"recipes of the package: {', '.join(shipped_recipes())}", width=100, break_on_hyphens=False
    )
    return f"{recipes}\n\nKeys of a recipe\n\n{recipe_reference()}"
