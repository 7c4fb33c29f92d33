"""The gradient of `policy_loss` against differences of its value, and against the formula where a factor is fixed."""

from __future__ import annotations

import pytest
import torch

from aapa.kernels import TokenFields, TokenLossSpec, policy_loss

TOKENS = 16


def problem(*components: str) -> tuple[torch.Tensor, torch.Tensor, TokenFields]:
    """Log-probs, entropies, and fields of some components, far enough from the kinks of clipping."""
    g = torch.Generator().manual_seed(0)

    def normal() -> torch.Tensor:
        return torch.randn(TOKENS, generator=g, dtype=torch.float64)

    logprob, entropy = -2 * normal().abs(), normal().abs()
    weights = {f"{name}_weight_T": torch.rand(TOKENS, generator=g, dtype=torch.float64) for name in components}
    fields = TokenFields(
        target_T=torch.zeros(TOKENS, dtype=torch.long),
        advantage_T=normal(),
        anchor_advantage_T=normal(),
        old_logprob_T=logprob + 0.3 * normal(),
        ref_logprob_T=logprob + 0.5 * normal(),
        correction_T=normal().abs(),
        sequence_T=torch.arange(TOKENS) // 5 - 1,
        **weights,
    )
    return logprob, entropy, fields


def own_loss(logprob: torch.Tensor, entropy: torch.Tensor, fields: TokenFields) -> torch.Tensor:
    return fields.advantage_T * logprob.exp() - 0.3 * entropy.square() * logprob


@pytest.mark.parametrize(
    ("spec", "components"),
    [
        (TokenLossSpec(clip_low=0.1, clip_high=0.28), ("rl", "adv", "kl", "sft")),
        (TokenLossSpec(delta=1.3, kl="k2"), ("rl", "adv", "kl")),
        (TokenLossSpec(kl="k1"), ("kl",)),
        (TokenLossSpec(kl="k1", kl_correction=True), ("rl", "kl")),
        (TokenLossSpec(kl="k3", kl_correction=True), ("kl",)),
        # In adv the ratio of a sequence has the slope of the token's own log-prob, which no difference shows.
        (TokenLossSpec(ratio_level="sequence", clip_low=0.05, clip_high=0.05), ("rl", "kl", "sft")),
        (TokenLossSpec(ratio_level="sequence", kl_correction=True), ("rl", "kl")),
        (TokenLossSpec(custom_loss=own_loss), ("rl", "custom")),
    ],
    ids=["clip", "dual clip, k2", "k1", "corrected k1", "corrected k3", "sequence", "sequence, corrected", "own"],
)
def test_gradcheck(spec, components):
    logprob, entropy, fields = problem(*components)
    inputs = logprob.requires_grad_(), entropy.requires_grad_(spec.custom_loss is not None)
    assert torch.autograd.gradcheck(lambda lp, e: policy_loss(lp, e, fields, spec)[0], inputs, rtol=1e-6, atol=1e-8)


def test_what_is_a_constant_has_no_slope():
    logprob, _, fields = problem("rl", "sft")
    logprob.requires_grad_()
    spec = TokenLossSpec(surrogate="cispo", phi=True, clip_low=0.1, clip_high=0.1)
    (got,) = torch.autograd.grad(policy_loss(logprob, None, fields, spec)[0], logprob)
    ratio, p = (logprob - fields.old_logprob_T).exp().clamp(0.9, 1.1).detach(), logprob.exp().detach()
    want = -fields.rl_weight_T * ratio * fields.advantage_T * fields.correction_T - fields.sft_weight_T * p * (1 - p)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
