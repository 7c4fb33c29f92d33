"""Reference of `policy_loss`. Shape legend: T tokens, N sequences, R rows with weight."""

from __future__ import annotations

import torch
from torch import Tensor

from aapa.kernels.checks import check_positive, check_shape
from aapa.kernels.fields import COMPONENTS, TokenFields, TokenLossSpec


def policy_loss(
    logprob_T: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec
) -> tuple[Tensor, dict[str, Tensor]]:
    ratios = _Ratios(logprob_T, fields, spec)
    loss = logprob_T.new_zeros(())
    metrics: dict[str, Tensor] = {}
    for component in COMPONENTS:
        weight_T = fields.weight(component)
        if weight_T is None:
            continue
        # Zero-weight positions (prompts, padding) may hold anything, even inf: select rows, do not multiply by 0.
        rows_R = weight_T.nonzero()[:, 0]
        value_R = _component(component, rows_R, logprob_T, entropy_T, ratios, fields, spec)
        term = (weight_T[rows_R].to(logprob_T.dtype) * value_R).sum()
        loss = loss + term
        metrics[f"loss/{component}"] = term.detach()
    metrics.update(_metrics(logprob_T.detach(), entropy_T, ratios, fields, spec))
    return loss, metrics


class _Ratios:
    """Log importance ratios log rho of all tokens, 0 where a token belongs to no rollout.

    Attributes:
        old_T: log-probs that the ratio is taken against.
        rl_T: of the token, or the mean over its sequence, with the gradient of the mean.
        adv_T: the same value with the gradient of the token's own log-prob, so that the advantages of sentences stay
            with their sentences (the token variant of GSPO).
    """

    def __init__(self, logprob_T: Tensor, fields: TokenFields, spec: TokenLossSpec) -> None:
        self.old_T = logprob_T.detach() if fields.old_logprob_T is None else fields.old_logprob_T.to(logprob_T.dtype)
        if spec.ratio_level == "token":
            active_T = active_tokens(fields)
            self.rl_T = self.adv_T = torch.where(active_T, logprob_T - self.old_T, 0.0)
            return
        if fields.sequence_T is None:
            raise ValueError("sequence_T: expected a tensor with ratio_level 'sequence', got None")
        active_T = fields.sequence_T >= 0
        token_T = torch.where(active_T, logprob_T - self.old_T, 0.0)
        self.rl_T = torch.where(active_T, _sequence_means(token_T, fields.sequence_T), 0.0)
        self.adv_T = self.rl_T.detach() + torch.where(active_T, logprob_T - logprob_T.detach(), 0.0)


def _sequence_means(value_T: Tensor, sequence_T: Tensor) -> Tensor:
    """Mean over the tokens of equal `sequence_T`, at each of them; entries of -1 are passed over."""
    place_T = sequence_T.clamp(min=0)
    inside_T = (sequence_T >= 0).to(value_T.dtype)
    sequences = int(place_T.max()) + 1 if len(place_T) else 0
    count_N = value_T.new_zeros(sequences).index_add(0, place_T, inside_T)
    total_N = value_T.new_zeros(sequences).index_add(0, place_T, value_T * inside_T)
    return (total_N / count_N.clamp(min=1))[place_T]


def loss_and_slopes(
    logprob_R: Tensor, entropy_R: Tensor, fields: TokenFields, spec: TokenLossSpec, gradients: bool
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor | None] | None]:
    """Loss and metrics of some rows, and with `gradients` dL/dlogprob [R] and dL/dentropy [R].

    The last is None where no loss depends on the entropy; only a custom one can. Works on [R] vectors only.
    """
    if not gradients:
        return *policy_loss(logprob_R, entropy_R, fields, spec), None
    with torch.enable_grad():
        logprob_R = logprob_R.detach().requires_grad_()
        entropy_R = entropy_R.detach().requires_grad_(spec.custom_loss is not None)
        loss, metrics = policy_loss(logprob_R, entropy_R, fields, spec)
        if not loss.requires_grad:  # no component has a weight
            return loss, metrics, (torch.zeros_like(logprob_R), None)
        inputs = (logprob_R, entropy_R) if entropy_R.requires_grad else (logprob_R,)
        found = torch.autograd.grad(loss, inputs, allow_unused=True)
    logprob_grad_R = torch.zeros_like(logprob_R) if found[0] is None else found[0]
    return loss.detach(), metrics, (logprob_grad_R, found[1] if len(found) == 2 else None)


def add_metrics(metrics: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    """Enter the metrics of more rows: sums are added, "max/…" are maxima."""
    for name, value in more.items():
        known = metrics.get(name)
        combine = torch.maximum if name.startswith("max/") else torch.add
        metrics[name] = value if known is None else combine(known, value)


def custom_values(
    rows_R: Tensor, logprob_R: Tensor, entropy_T: Tensor | None, fields: TokenFields, spec: TokenLossSpec
) -> Tensor:
    """The user's own loss of the rows that have weight in it, [R], differentiable."""
    assert spec.custom_loss is not None, "custom_weight_T needs spec.custom_loss"
    if not len(rows_R):
        return logprob_R
    entropy_R = None if entropy_T is None else entropy_T[rows_R]
    value_R = spec.custom_loss(logprob_R, entropy_R, fields.rows(rows_R))
    if not isinstance(value_R, Tensor):
        raise ValueError(f"custom_loss: expected a tensor of the rows' losses, got {type(value_R).__name__}")
    check_shape("custom_loss", value_R, tuple(logprob_R.shape))
    if not value_R.is_floating_point():
        raise ValueError(f"custom_loss: expected floating point, got {value_R.dtype}")
    return value_R.to(logprob_R.dtype)


def _component(
    name: str,
    rows_R: Tensor,
    logprob_T: Tensor,
    entropy_T: Tensor | None,
    ratios: _Ratios,
    fields: TokenFields,
    spec: TokenLossSpec,
) -> Tensor:
    logprob_R = logprob_T[rows_R]
    if name == "sft":
        if not spec.phi:
            return -logprob_R
        p_R = logprob_R.detach().exp()
        return -logprob_R * p_R * (1.0 - p_R)
    if name == "custom":
        return custom_values(rows_R, logprob_R, entropy_T, fields, spec)
    if name == "kl":
        assert fields.ref_logprob_T is not None
        value_R = kl_estimate(fields.ref_logprob_T[rows_R].to(logprob_R.dtype) - logprob_R, spec.kl)
        return value_R * ratios.rl_T[rows_R].exp() if spec.kl_correction else value_R
    advantage_T = fields.advantage_T if name == "rl" else fields.anchor_advantage_T
    log_ratio_T = ratios.rl_T if name == "rl" else ratios.adv_T
    assert advantage_T is not None
    value_R = _surrogate(log_ratio_T[rows_R].exp(), logprob_R, advantage_T[rows_R].to(logprob_R.dtype), spec)
    return value_R if fields.correction_T is None else value_R * fields.correction_T[rows_R].to(logprob_R.dtype)


def _surrogate(ratio_R: Tensor, logprob_R: Tensor, advantage_R: Tensor, spec: TokenLossSpec) -> Tensor:
    clipped_R = ratio_R.clamp(1.0 - spec.clip_low, 1.0 + spec.clip_high)
    if spec.surrogate == "cispo":
        return -clipped_R.detach() * advantage_R * logprob_R
    if spec.delta is not None:
        ratio_R = ratio_R.clamp(max=spec.delta)
    return -torch.minimum(ratio_R * advantage_R, clipped_R * advantage_R)


def kl_estimate(difference: Tensor, estimator: str) -> Tensor:
    """k1, k2 or k3 of the divergence from the reference; `difference` = ref_logprob - logprob."""
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * difference**2
    return torch.expm1(difference) - difference


def needed_rows(fields: TokenFields, spec: TokenLossSpec) -> tuple[Tensor | None, TokenFields]:
    """([R] int64, rows that loss or metrics need, None where all are; the fields of those rows).

    A row without weight in any component is in no sum: neither loss, gradient nor metric changes when it is left out,
    whatever its hidden states hold. Only ratios over sequences look at rows without weight of their own.
    """
    needed_T = torch.zeros_like(fields.target_T, dtype=torch.bool)
    for component in COMPONENTS:
        weight_T = fields.weight(component)
        if weight_T is not None:
            needed_T |= weight_T != 0
    if spec.ratio_level == "sequence" and fields.sequence_T is not None:
        needed_T |= fields.sequence_T >= 0
    rows_R = indices(needed_T, 1.0)
    fields = fields if rows_R is None else fields.rows(rows_R)
    check_positive("temperature_T", fields.temperature_T)
    return rows_R, fields


def indices(chosen: Tensor, below: float) -> Tensor | None:
    """Places of the chosen ones, None where they are no less than this share."""
    found = chosen.nonzero()[:, 0]
    return found if len(found) < below * len(chosen) else None


def active_tokens(fields: TokenFields) -> Tensor:
    """[T] bool, tokens whose ratio matters: those with weight in rl, adv or kl, and those of rollouts in custom."""
    active_T = torch.zeros_like(fields.target_T, dtype=torch.bool)
    for weight_T in (fields.rl_weight_T, fields.adv_weight_T, fields.kl_weight_T):
        if weight_T is not None:
            active_T |= weight_T != 0
    if fields.custom_weight_T is not None and fields.sequence_T is not None:
        active_T |= (fields.custom_weight_T != 0) & (fields.sequence_T >= 0)
    return active_T


@torch.no_grad()
def _metrics(
    logprob_T: Tensor, entropy_T: Tensor | None, ratios: _Ratios, fields: TokenFields, spec: TokenLossSpec
) -> dict[str, Tensor]:
    """Sums over the rollout tokens that have weight, and what is known of the other components."""
    active_R = active_tokens(fields).nonzero()[:, 0]
    log_ratio_R = ratios.rl_T[active_R]
    old_R = ratios.old_T[active_R]
    metrics = {
        "sum/tokens": logprob_T.new_tensor(len(active_R)),
        "sum/ratio": log_ratio_R.exp().sum(),
        "sum/kl_old": -(logprob_T[active_R] - old_R).sum(),
        "max/log_ratio": log_ratio_R.abs().amax() if len(active_R) else log_ratio_R.new_zeros(()),
    }
    for name, advantage_T in (("rl", fields.advantage_T), ("adv", fields.anchor_advantage_T)):
        weight_T = fields.weight(name)
        if weight_T is not None and advantage_T is not None:
            rows_R = weight_T.nonzero()[:, 0]
            ratio_R, advantage_R = ratios.rl_T[rows_R].exp(), advantage_T[rows_R]
            metrics[f"sum/{name}_clipped_low"] = _count((ratio_R < 1.0 - spec.clip_low) & (advantage_R < 0), logprob_T)
            metrics[f"sum/{name}_clipped_high"] = _count(
                (ratio_R > 1.0 + spec.clip_high) & (advantage_R > 0), logprob_T
            )
    if entropy_T is not None:
        metrics["sum/entropy"] = entropy_T[active_R].sum()
    if fields.kl_weight_T is not None and fields.ref_logprob_T is not None:
        rows_R = fields.kl_weight_T.nonzero()[:, 0]
        difference_R = fields.ref_logprob_T[rows_R].to(logprob_T.dtype) - logprob_T[rows_R]
        metrics["sum/kl_ref"] = kl_estimate(difference_R, "k3").sum()
    if fields.rollout_logprob_T is not None:
        rollout_R = fields.rollout_logprob_T[active_R].to(logprob_T.dtype)
        # What the engine does not know (NaN) counts as no error.
        error_R = (old_R.exp() - rollout_R.exp()).abs().nan_to_num(nan=0.0)
        metrics["sum/prob_error"] = error_R.sum()
        metrics["max/prob_error"] = error_R.amax() if len(active_R) else error_R.new_zeros(())
    if fields.correction_T is not None:
        correction_R = fields.correction_T[active_R].to(logprob_T.dtype)
        metrics["sum/correction"] = correction_R.sum()
        metrics["sum/correction_masked"] = _count(correction_R == 0, logprob_T)
    if spec.phi and fields.sft_weight_T is not None:
        p_R = logprob_T[fields.sft_weight_T != 0].exp()
        metrics["sum/phi"] = (p_R * (1.0 - p_R)).sum()
    return metrics


def _count(condition: Tensor, like: Tensor) -> Tensor:
    return condition.sum().to(like.dtype)
