"""In float64 a response's scores are its own: batch, order, packing and parallel layout change nothing beyond 1e-12."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

import scoring_case
import tiny
from reward_models import reward_model
from scoring_case import WAYS, every_way, flat, items, score, scorer, whole

from aapa.batch import Sequence
from aapa.engine.discriminator_stage import check_layer
from aapa.engine.errors import UserError
from aapa.packing import pack

TOLERANCE = 1e-12
COUNT = len(items())


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor], where: str) -> None:
    """Equal up to `TOLERANCE` of each value's size, or of the typical one where values come close to 0."""
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name].dtype == torch.float64
        torch.testing.assert_close(got[name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{where}: {name}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["sentence", "cosine"])
def test_what_else_is_in_the_batch_and_in_which_order_changes_nothing(parallel, kind, way):
    judge = scorer(parallel, kind, way, 40)
    together = flat(score(judge, way, whole()))
    values = torch.cat([value for name, value in together.items() if "scores" in name])
    assert values.std() > 0.01, "scores must vary"
    assert len(values) > COUNT, "responses must have several sentences"
    shuffled = torch.randperm(COUNT, generator=torch.Generator().manual_seed(5)).tolist()
    arrangements = {
        "alone": [[number] for number in range(COUNT)],
        "backwards": [list(range(COUNT))[::-1]],
        "groups taken apart": [shuffled],
        "in two halves": [list(range(0, COUNT, 2)), list(range(1, COUNT, 2))],
    }
    for name, parts in arrangements.items():
        assert_equal(flat(score(judge, way, parts)), together, name)
        assert_equal(flat(score(scorer(parallel, kind, way, 40), way, parts)), together, f"{name}, experts anew")


@pytest.mark.parametrize("tokens", [1, 23, 64, 100_000])
def test_the_micro_batch_changes_nothing(parallel, tokens):
    """1: every sequence alone; 100 000: all in one."""
    assert_equal(every_way(parallel, tokens), every_way(parallel, 40), str(tokens))


def test_the_reference_log_probs_are_those_of_a_pass_of_their_own(parallel):
    """One pass for states and log-probs gives both as two passes do."""
    shared = flat(score(scorer(parallel, "sentence", way := "states and the reference's log-probs", 40), way, whole()))
    states = flat(score(scorer(parallel, "sentence", "states", 40), "states", whole()))
    assert_equal({name: value for name, value in shared.items() if "scores" in name}, states, "states")
    sequences = [
        Sequence(torch.tensor(e.prompt), torch.tensor(r, dtype=torch.long), "rollout", temperature=WAYS[way][1])
        for e, r in items()
    ]
    batches = pack(sequences, 50)
    alone = scorer(parallel, "sentence", way, 50).trunk
    found = {}
    for batch, logprob_T in zip(batches, alone.logprobs(batches), strict=True):
        for number, values in zip(batch.index_N, batch.responses(logprob_T), strict=True):
            found[f"{number:02d} log-probs"] = values
    assert_equal({name: value for name, value in shared.items() if "log-probs" in name}, found, "log-probs")
    # And both are transformers' own.
    model = tiny.hf_model(tied=False)
    for number, (example, response) in enumerate(items()):
        if response:
            ids = torch.tensor([[*example.prompt, *response]])
            with torch.no_grad():
                logits = model(ids).logits[0, len(example.prompt) - 1 : -1].double() / WAYS[way][1]
            want = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
            # transformers' norms and rotations are float32 in every type.
            torch.testing.assert_close(shared[f"{number:02d} log-probs"], want, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> Path:
    return reward_model(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def alone(launch, judge, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    launch("scoring_worker.py", 1, 1, 1, folder, judge)
    return folder


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("layout", "shape"),
    [("tensor", (2, 1)), ("data", (1, 1)), pytest.param("pipeline", (1, 2), marks=pytest.mark.slow)],
)
def test_two_processes_score_as_one_does(layout, shape, alone, judge, launch, tmp_path):
    launch("scoring_worker.py", 2, *shape, tmp_path, judge)
    want = load_file(alone / "trunk-0.safetensors")
    assert len(want) == sum((1 + (temperature is not None)) * 2 * COUNT for _, temperature, _ in WAYS.values())
    judged = load_file(alone / "judged-0.safetensors")
    assert len(judged) == COUNT
    found = [load_file(tmp_path / f"judged-{rank}.safetensors") for rank in (0, 1)]
    for rank in (0, 1):
        assert_equal(load_file(tmp_path / f"trunk-{rank}.safetensors"), want, f"{layout}, rank {rank}")
    if layout == "data":  # each replica judges its own share
        assert not found[0].keys() & found[1].keys()
        assert_equal(found[0] | found[1], judged, layout)
    else:  # the leader judges, and the other rank has the same bits
        assert all(torch.equal(found[0][name], found[1][name]) for name in judged)
        assert_equal(found[0], judged, layout)


def test_the_case_holds_what_breaks_scoring():
    """An empty response, one of a single token, and one that is cut off within a sentence."""
    responses = [response for _, response in items()]
    assert [] in responses
    assert [scoring_case.EOS] in responses
    assert any(r and r[-1] not in (scoring_case.EOS, scoring_case.STOP) for r in responses)


@pytest.mark.parametrize(("layer", "layers", "pipeline"), [(1, 4, 2), (-2, 4, 2), (-1, 3, 2), (4, 4, 3)])
def test_a_layer_at_which_stages_cannot_be_equally_long_is_refused(layer, layers, pipeline):
    check_layer(layer, layers, 1)
    with pytest.raises(
        UserError, match=rf"discriminator\.layer: expected as many layers as parallel.pipeline = {pipeline} "
    ):
        check_layer(layer, layers, pipeline)
    check_layer(2, 4, 2)
