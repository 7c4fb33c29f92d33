"""Discriminators on a synthetic language: what they learn, and what they must not be able to learn."""

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aapa.discriminator import (
    CosineDiscriminator,
    Discriminator,
    FitMaterial,
    FitSettings,
    QualityCard,
    SentenceDiscriminator,
    fit_sentence_discriminator,
)
from aapa.discriminator.base import table_hash
from aapa.discriminator.corruptions import CORRUPTIONS
from aapa.discriminator.fit import feature_statistics, standardised, train_model
from aapa.discriminator.held_out import quality_card, response_means
from aapa.discriminator.material import Tokenization, build_pool
from aapa.discriminator.pairs import PairSampler, SentencePool, draw_sets
from aapa.discriminator.quality import auc, auc_length_matched
from aapa.sentences import spans

sys.path.insert(0, str(Path(__file__).parent))

from toy_language import HIDDEN, ROLES, TABLE, ToyTrunk, decode, encode, make_material

QUICK = FitSettings(rank=32, width=32, steps=200, batch_size=64, learning_rate=3e-3, held_out=0.4)


def fit(
    material: list[FitMaterial], settings: FitSettings = QUICK, memory: float = 0.5
) -> tuple[Discriminator, QualityCard]:
    return fit_sentence_discriminator(ToyTrunk(memory), material, settings, encode, decode, TABLE, seed=0)


def make_pool(material: list[FitMaterial], memory: float = 0.5) -> SentencePool:
    tokenization = Tokenization(encode, decode, TABLE, "sentence")
    pool = build_pool(ToyTrunk(memory), material, tokenization, 2, random.Random(1), reference_only=False)
    return standardised(pool, *feature_statistics(pool))


@pytest.mark.parametrize("loss", ["bradley_terry", "bce"])
def test_separable_styles_are_separated(loss: str) -> None:
    settings = replace(QUICK, loss=loss, corruptions_per_prompt=0)  # type: ignore[arg-type]
    discriminator, card = fit(make_material(100), settings)
    assert isinstance(discriminator, Discriminator)
    assert card.auc > 0.9
    assert card.rollouts > 0.95
    assert card.rollouts_length_matched > 0.95
    assert card.other_prompts > 0.85
    assert card.counts["held_out_prompts"] == 40
    assert card.counts["positives"] == 40 * ROLES
    assert card.counts["rollouts"] == 3 * 40 * ROLES
    assert card.counts["leave_one_out"] == card.counts["damaged"] == 0
    assert 0 <= card.saturation < 0.05
    # Three sentences know more than one.
    assert card.rollouts_by_response >= card.rollouts
    assert card.rollouts_by_response_length_matched == card.rollouts_by_response


def test_a_response_is_judged_by_the_mean_of_its_sentences() -> None:
    """The responses' AUC, counted pair by pair from scores made one response at a time."""
    material = make_material(12, rollout_style=0)
    discriminator, _ = fit(material, replace(QUICK, steps=20))
    pool = make_pool(material)
    card = quality_card(discriminator, pool, pool, 0)

    def mean(sentence_KD: Tensor, prompt: int) -> float:
        expert_ED = pool.state_SD[pool.experts.rows(2 * prompt)]
        groups = torch.tensor([0, len(sentence_KD)]), torch.tensor([0, len(expert_ED)])
        return float(discriminator.score(sentence_KD, groups[0], expert_ED, groups[1]).double().mean())

    seconds = [mean(pool.state_SD[pool.experts.rows(2 * prompt + 1)], prompt) for prompt in range(12)]
    rollouts = [
        mean(states, prompt)
        for prompt in range(12)
        for states in pool.state_SD[pool.rollouts.rows(prompt)].split(ROLES)
    ]
    wins = sum((s > r) + (s == r) / 2 for s in seconds for r in rollouts)
    assert card.rollouts_by_response == pytest.approx(wins / (len(seconds) * len(rollouts)), abs=1e-3)


def test_responses_without_sentences_have_no_mean() -> None:
    mean_N, length_N = response_means(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 2, 0, 1]))
    assert mean_N.tolist() == [1.5, 6.0]
    assert length_N.tolist() == [2, 1]


def test_corruptions_that_the_trunk_can_see_are_found() -> None:
    """This trunk sees words and topics, not their order."""
    _, card = fit(make_material(100), replace(QUICK, steps=300))
    assert set(card.corruptions) == set(card.corruptions_length_matched) == set(CORRUPTIONS)
    assert card.corruptions["wrong_case"] > 0.8
    assert card.corruptions["other_topic"] > 0.75
    assert card.corruptions["shuffled_words"] == pytest.approx(0.5, abs=0.15)
    assert card.counts["damaged"] > 200


def test_shuffled_labels_leave_nothing_to_learn() -> None:
    """The same separable styles, dealt to experts and rollouts at random: held out, chance."""
    _, card = fit(make_material(250), replace(QUICK, shuffle_labels=True))
    assert card.rollouts == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("experts", [1, 2])
def test_equal_distributions_give_chance(experts: int) -> None:
    """Experts and rollouts of one style differ in nothing; leaving a sentence's role out of its set must not
    tell.

    Without memory, since sentences of one response have their past in common, which is no leak of the sets.
    """
    _, card = fit(make_material(250, rollout_style=0, experts=experts), memory=0.0)
    assert card.rollouts == pytest.approx(0.5, abs=0.07)
    assert card.counts["leave_one_out"] == (card.counts["positives"] if experts == 1 else 0)
    assert card.other_prompts > 0.8


def test_leaving_only_the_positive_out_would_leak() -> None:
    """What the matched sets prevent: with one expert, 'nothing of my role is here' gives positives away."""
    pool = make_pool(make_material(200, rollout_style=0, experts=1), memory=0.0)
    sampler = PairSampler(pool, (1.0, 0.0, 0.0), torch.Generator().manual_seed(0))
    pairs = sampler.sample(4000)
    is_positive = torch.arange(8000) < 4000

    def nearness_auc(expert_E: Tensor, cu_expert: Tensor) -> float:
        owner_E = torch.arange(8000).repeat_interleave(cu_expert.diff())
        cosine_E = torch.cosine_similarity(pool.state_SD[pairs.row_2B][owner_E], pool.state_SD[expert_E])
        nearest_2B = torch.full((8000,), -1.0).scatter_reduce(0, owner_E, cosine_E, "amax")
        return auc(nearest_2B[~is_positive], nearest_2B[is_positive])

    # With one expert a prompt, responses and prompts have the same numbers, and negatives are the same
    # prompt's.
    set_B = torch.searchsorted(pool.experts.start_G, pairs.row_2B[:4000], right=True) - 1
    size_2B = pairs.cu_expert.diff()
    leaking = draw_sets(pool, pairs.row_2B, set_B.repeat(2), is_positive, size_2B, torch.Generator().manual_seed(1))
    assert nearness_auc(*leaking) > 0.6
    assert nearness_auc(pairs.expert_E, pairs.cu_expert) < 0.55


def test_set_size_says_nothing() -> None:
    for experts in (1, 2, 3):
        pool = make_pool(make_material(40, experts=experts))
        sampler = PairSampler(pool, (0.4, 0.3, 0.3), torch.Generator().manual_seed(0))
        pairs = sampler.sample(3000)
        size_2B = pairs.cu_expert.diff()
        assert int(size_2B.min()) >= 1
        assert auc(size_2B[:3000].float(), size_2B[3000:].float()) <= 0.55
        assert torch.equal(size_2B[:3000], size_2B[3000:])
        assert len(size_2B.unique()) == (ROLES if experts > 1 else ROLES - 1)


@pytest.mark.parametrize("experts", [1, 2])
def test_pairs_are_what_they_should_be(experts: int) -> None:
    pool = make_pool(make_material(30, experts=experts))
    sampler = PairSampler(pool, (0.4, 0.3, 0.3), torch.Generator().manual_seed(0))
    pairs = sampler.sample(2000)
    expert_rows = int(pool.experts.count_G.sum())
    response_of = torch.arange(len(pool.experts.count_G)).repeat_interleave(pool.experts.count_G)
    prompt_of_rollout = torch.arange(30).repeat_interleave(pool.rollouts.count_G)
    source_of_damaged = torch.arange(30 * experts).repeat_interleave(pool.damaged.count_G)
    kinds = set()
    for b, (positive, negative) in enumerate(zip(*pairs.row_2B.view(2, -1).tolist(), strict=True)):
        sets = [pairs.expert_E[pairs.cu_expert[i] : pairs.cu_expert[i + 1]] for i in (b, 2000 + b)]
        chosen = {int(r) for rows in sets for r in response_of[rows]}
        assert len(chosen) == 1, "positive and negative are scored against one response"
        (chosen_response,) = chosen
        prompt = int(pool.prompt_R[chosen_response])
        assert all(len(set(rows.tolist())) == len(rows) for rows in sets)
        # The positive: an expert sentence of the same prompt, of another response if there is one, never
        # itself.
        assert positive < expert_rows
        assert int(pool.prompt_R[response_of[positive]]) == prompt
        assert (int(response_of[positive]) == chosen_response) == (experts == 1)
        assert positive not in sets[0].tolist()
        if negative < expert_rows:
            kinds.add("other")
            assert int(pool.prompt_R[response_of[negative]]) != prompt
        elif negative < expert_rows + len(prompt_of_rollout):
            kinds.add("rollout")
            assert int(prompt_of_rollout[negative - expert_rows]) == prompt
        else:
            kinds.add("damaged")
            source = int(source_of_damaged[negative - expert_rows - len(prompt_of_rollout)])
            assert source == int(response_of[positive])
            assert int(pool.kind_S[negative]) >= 0
    assert kinds == {"other", "rollout", "damaged"}


def test_the_nearest_sentence_is_left_out() -> None:
    pool = make_pool(make_material(5, experts=1))
    row_B = torch.cat([pool.experts.rows(2), pool.rollouts.rows(2)])
    set_B = torch.full_like(row_B, 2)
    expert_E, cu_expert = draw_sets(pool, row_B, set_B, torch.ones_like(row_B, dtype=torch.bool), None, None)
    everything = set(pool.experts.rows(2).tolist())
    for b, row in enumerate(row_B.tolist()):
        left_out = everything - set(expert_E[cu_expert[b] : cu_expert[b + 1]].tolist())
        cosine = {e: float(torch.cosine_similarity(pool.state_SD[row], pool.state_SD[e], 0)) for e in everything}
        assert left_out == {max(cosine, key=lambda e: cosine[e])}
        assert row not in everything or left_out == {row}


def test_one_sentence_and_no_second_expert_gives_no_positive() -> None:
    item = FitMaterial([22], [encode("w1 w2.")], [encode("w3 w4.")])
    assert make_pool([item] * 3).contrasts().shape == (0, 2)
    with pytest.raises(ValueError, match="^material: expected a second expert response or one of two sentences"):
        fit([item] * 8)


def test_frozen_scores_equal_the_fitted_model() -> None:
    """Folding the standardisation into P changes nothing."""
    tokenization = Tokenization(encode, decode, TABLE, "sentence")
    raw = build_pool(ToyTrunk(), make_material(10), tokenization, 1, random.Random(1), reference_only=False)
    mean_D, std_D = feature_statistics(raw)
    pool = standardised(raw, mean_D, std_D)
    model = train_model(pool, replace(QUICK, steps=5), seed=0, on_progress=None)
    discriminator, _ = fit(make_material(10), replace(QUICK, steps=1))
    assert isinstance(discriminator, SentenceDiscriminator)
    discriminator = replace(discriminator, head=model.head(mean_D, std_D))
    row, experts = pool.rollouts.rows(3), pool.experts.rows(6)
    cu_group, cu_expert = torch.tensor([0, len(row)]), torch.tensor([0, len(experts)])
    expected = model(pool.state_SD[row], cu_group, pool.state_SD[experts], cu_expert)
    got = discriminator.score(raw.state_SD[row], cu_group, raw.state_SD[experts], cu_expert)
    torch.testing.assert_close(got, expected.detach(), rtol=1e-4, atol=1e-5)


def test_calibration_is_that_of_held_out_rollouts() -> None:
    material, settings = make_material(40), replace(QUICK, steps=20, held_out=0.5)
    discriminator, _ = fit(material, settings)
    held_out = random.Random(0).sample(material, 40)[:20]
    trunk, scores = ToyTrunk(), []
    for item in held_out:
        expert = trunk.sentence_states([item.prompt], item.experts[:1], spans(item.experts[:1], TABLE))
        own = trunk.sentence_states([item.prompt] * 3, item.rollouts, spans(item.rollouts, TABLE))
        scores.append(discriminator.score(own, torch.tensor([0, len(own)]), expert, torch.tensor([0, len(expert)])))
    score_S = torch.cat(scores).double()
    assert discriminator.mean == pytest.approx(float(score_S.mean()), rel=1e-4)
    assert discriminator.std == pytest.approx(float(score_S.std()), rel=1e-4)


def test_no_gradient_flows_into_or_through_a_discriminator() -> None:
    for kind in ("sentence", "cosine"):
        discriminator, _ = fit(make_material(10), replace(QUICK, steps=2, kind=kind))  # type: ignore[arg-type]
        sentence_SD = torch.randn(3, HIDDEN, requires_grad=True)
        score_S = discriminator.score(sentence_SD, torch.tensor([0, 3]), torch.randn(2, HIDDEN), torch.tensor([0, 2]))
        assert not score_S.requires_grad
        assert not any(value.requires_grad for value in discriminator.tensors().values())


def test_cosine_is_the_best_cosine_less_a_constant() -> None:
    discriminator, card = fit(make_material(40), replace(QUICK, kind="cosine"))
    assert isinstance(discriminator, CosineDiscriminator)
    assert (discriminator.kind, discriminator.mean) == ("cosine", 0.0)
    assert card.other_prompts > 0.7
    u, e = torch.randn(4, HIDDEN), torch.randn(3, HIDDEN)
    score_S = discriminator.score(u, torch.tensor([0, 3, 4]), e, torch.tensor([0, 3, 3]))
    best = torch.stack([torch.cosine_similarity(u[k : k + 1], e).max() for k in range(3)])
    torch.testing.assert_close(score_S[:3], best - discriminator.constant)
    assert score_S[3] == 0.0


def test_the_same_seed_gives_the_same_discriminator_and_progress_is_told() -> None:
    material, settings = make_material(10), replace(QUICK, steps=25)
    told: list[tuple[int, int]] = []
    first, _ = fit_sentence_discriminator(
        ToyTrunk(),
        material,
        settings,
        encode,
        decode,
        TABLE,
        3,
        lambda step, steps, _: told.append((step, steps)),
    )
    torch.randn(7)
    again, _ = fit_sentence_discriminator(ToyTrunk(), material, settings, encode, decode, TABLE, 3)
    other, _ = fit_sentence_discriminator(ToyTrunk(), material, settings, encode, decode, TABLE, 4)
    assert told == [(20, 25), (25, 25)]
    assert first.hash == again.hash != other.hash
    assert first.origin.trunk == "toy"
    assert first.origin.table == table_hash(TABLE)


def test_whole_responses_as_spans() -> None:
    _, card = fit(make_material(60), replace(QUICK, granularity="response"))
    assert card.rollouts > 0.85
    assert card.counts["positives"] == 24


def test_area_under_the_curve() -> None:
    positive, negative = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 0.0])
    wins = [1.0, 1.0, 0.0, 1.0, 0.5, 1.0]
    assert auc(positive, negative) == pytest.approx(sum(wins) / 6)
    lengths = torch.tensor([4, 4, 5]), torch.tensor([4, 6])
    assert auc_length_matched(positive, lengths[0], negative, lengths[1]) == pytest.approx(0.5)
    assert auc(positive, negative[:0]) != auc(positive, negative[:0]), "NaN without negatives"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "polar"}, "^kind: expected one of sentence, cosine, got 'polar'"),
        ({"loss": "hinge"}, "^loss"),
        ({"steps": 0}, "^steps: expected a positive number, got 0"),
        ({"temperature": float("nan")}, "^temperature"),
        ({"held_out": 1.0}, "^held_out"),
        ({"negative_mix": (0.0, 0.0, 0.0)}, "^negative_mix"),
    ],
)
def test_settings_are_checked(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(QUICK, **change)  # type: ignore[arg-type]


def test_material_is_checked() -> None:
    material = make_material(10)
    with pytest.raises(ValueError, match=r"^material.3.experts: expected responses that are not empty"):
        fit([*material[:3], replace(material[3], experts=[[]])])
    with pytest.raises(ValueError, match=r"^material.0.prompt"):
        fit([replace(material[0], prompt=[])])
    with pytest.raises(ValueError, match="^material: expected 2 prompts or more on either side"):
        fit(material[:3])
    with pytest.raises(ValueError, match="^material: expected 2 sentences or more of held-out rollouts, got 0"):
        fit([replace(item, rollouts=[[]]) for item in material], replace(QUICK, steps=2))
