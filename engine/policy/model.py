"""GPTModel that hands hidden states to the head, and its configuration from a Hugging Face one."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.distributed import finalize_model_grads
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from aapa.engine.errors import UserError
from aapa.engine.policy.families import config_problems
from aapa.engine.policy.layers import block_spec
from aapa.engine.policy.names import problem_text
from aapa.engine.policy.parallel import Parallel
from aapa.engine.policy.settings import TrainSettings


class PolicyModel(GPTModel):
    """Megatron's GPT whose last stage returns hidden states [T, 1, D] instead of logits."""

    def _preprocess(self, input_ids: Tensor, position_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        decoder_input, table, *rest = super()._preprocess(input_ids, position_ids, *args, **kwargs)
        # The table has one row per position up to the longest sequence; packed tokens look theirs up.
        return decoder_input, table[position_ids[0]], *rest

    def _postprocess(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states

    def head_weight(self) -> Tensor:
        """This rank's rows of the LM head, [V_local, D]; the last stage has them."""
        if self.share_embeddings_and_output_weights:
            return self.shared_embedding_or_output_weight()
        return self.output_layer.weight


def check_supported(hf: PretrainedConfig, field: str = "model.source") -> None:
    """Refuse models that would silently compute something else.

    Raises:
        UserError: a line for each reason.
    """
    problems = config_problems(hf.to_dict())
    if problems:
        raise UserError(problem_text(field, problems))


def rotary_frequencies(hf: PretrainedConfig) -> tuple[Tensor | None, float]:
    """(float32 [head_dim / 2] angle per position, or None for Megatron's own; factor of the rotated queries and keys).

    transformers' functions, so that scaled angles are its own bit for bit.
    """
    kind = hf.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return None, 1.0
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](hf, torch.device("cpu"))
    return frequencies, float(factor)


# Megatron's words for what is recomputed: one layer after another, or the core attention alone.
_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def transformer_config(
    hf: PretrainedConfig,
    parallel: Parallel,
    dtype: torch.dtype,
    layers: int | None = None,
    settings: TrainSettings | None = None,
) -> TransformerConfig:
    """Megatron's configuration of a Hugging Face model; `layers` cuts it short."""
    check_supported(hf)
    _, factor = rotary_frequencies(hf)
    recompute = "none" if settings is None else settings.recompute
    return TransformerConfig(
        num_layers=hf.num_hidden_layers if layers is None else layers,
        hidden_size=hf.hidden_size,
        num_attention_heads=hf.num_attention_heads,
        num_query_groups=hf.num_key_value_heads,
        kv_channels=hf.head_dim,
        ffn_hidden_size=hf.intermediate_size,
        layernorm_epsilon=hf.rms_norm_eps,
        normalization="RMSNorm",
        qk_layernorm=hf.model_type == "qwen3",
        add_qkv_bias=hf.attention_bias,
        # YaRN lengthens rotated queries and keys; on whole heads that is a factor of the scores.
        softmax_scale=None if factor == 1.0 else factor**2 / math.sqrt(hf.head_dim),
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual if parallel.virtual > 1 else None,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        # Weights always come from a Hugging Face state, so that they do not depend on the layout.
        perform_initialization=False,
        use_cpu_initialization=parallel.device.type == "cpu",
        # Losses are sums whose weights hold their denominators (METHOD 4.1): Megatron must divide by nothing.
        calculate_per_token_loss=True,
        # Micro-batches differ in length; Megatron wants this dispatcher named beside it even without experts.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        # With two stages both neighbours are the same peer, and batched point-to-point mixes up their messages.
        batch_p2p_comm=False,
        finalize_model_grads_func=finalize_model_grads,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        persist_layer_norm=False,
        **_RECOMPUTE[recompute],
    )


def padded_vocabulary(vocab_size: int, tensor: int) -> int:
    """Rows of the embedding: the vocabulary rounded up so that every tensor-parallel rank has as many."""
    return -(-vocab_size // tensor) * tensor


def build_model(
    hf: PretrainedConfig,
    parallel: Parallel,
    dtype: torch.dtype,
    layers: int | None = None,
    final_norm: bool = True,
) -> PolicyModel:
    """This rank's shard of a model that does not train, uninitialised. `layers` keeps the first layers only."""
    assert parallel.virtual == 1, "a frozen model has one chunk a stage"
    return _build_chunk(hf, parallel, transformer_config(hf, parallel, dtype, layers), 0, final_norm)


def build_chunks(
    hf: PretrainedConfig, parallel: Parallel, dtype: torch.dtype, settings: TrainSettings
) -> list[PolicyModel]:
    """This rank's shard of the policy, uninitialised: a chunk, or several with an interleaved schedule."""
    config = transformer_config(hf, parallel, dtype, settings=settings)
    return [_build_chunk(hf, parallel, config, chunk, True) for chunk in range(parallel.virtual)]


def _build_chunk(
    hf: PretrainedConfig, parallel: Parallel, config: TransformerConfig, chunk: int, final_norm: bool
) -> PolicyModel:
    stage = chunk if parallel.virtual > 1 else None
    model = PolicyModel(
        config,
        block_spec(config, final_norm, stage),
        vocab_size=padded_vocabulary(hf.vocab_size, parallel.tensor),
        max_sequence_length=hf.max_position_embeddings,
        pre_process=parallel.first_stage and chunk == 0,
        post_process=parallel.last_stage and chunk == parallel.virtual - 1,
        parallel_output=True,
        share_embeddings_and_output_weights=hf.tie_word_embeddings,
        position_embedding_type="rope",
        rotary_base=hf.rope_parameters["rope_theta"],
        vp_stage=stage,
    )
    # The table has all positions on every rank, and each looks up those of its own tokens.
    model.rotary_pos_emb.cp_group = None
    frequencies, _ = rotary_frequencies(hf)
    if frequencies is not None:
        model.rotary_pos_emb.inv_freq = frequencies.to(model.rotary_pos_emb.inv_freq.device)
    _mark_shards(model)
    return model


def _mark_shards(model: PolicyModel) -> None:
    """Mark weights that are split over tensor-parallel ranks, as Megatron does while it initialises them.

    Without the marks every rank but the first would leave its shards out of the gradient norm.
    """
    split_along = {ColumnParallelLinear: 0, RowParallelLinear: 1, VocabParallelEmbedding: 0}
    for module in model.modules():
        dimension = next((axis for kind, axis in split_along.items() if isinstance(module, kind)), None)
        if dimension is not None and module.weight is not None:
            for name in ("tensor_model_parallel", "partition_dim", "partition_stride"):
                if hasattr(module.weight, name):
                    delattr(module.weight, name)
            set_tensor_model_parallel_attributes(module.weight, True, dimension, 1)
