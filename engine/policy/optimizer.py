"""Adam on the policy's shard: Megatron's optimizer, with its state readable parameter by parameter."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from torch import Tensor

from aapa.engine.errors import TrainingFault

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class AdamSettings:
    """Hyperparameters of a stage's optimizer; the learning rate comes with every step."""

    weight_decay: float = 0.0
    clip_grad: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-8


class Adam:
    """AdamW with global-norm clipping over all ranks; norms and biases are not decayed."""

    def __init__(self, model: DistributedDataParallel, settings: AdamSettings, dtype: torch.dtype) -> None:
        config = OptimizerConfig(
            optimizer="adam",
            lr=0.0,
            weight_decay=settings.weight_decay,
            adam_beta1=settings.beta1,
            adam_beta2=settings.beta2,
            adam_eps=settings.eps,
            clip_grad=settings.clip_grad,
            params_dtype=dtype,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells at length that Apex and TransformerEngine are absent
            overrides = get_standard_config_overrides(config)
            self._optimizer = get_megatron_optimizer(config, [model], config_overrides=overrides)
        for group in self._optimizer.param_groups:
            # Megatron applies this multiplier in its own learning-rate scheduler, which is not used here.
            group["weight_decay"] = settings.weight_decay * group.get("wd_mult", 1.0)
        self.steps = 0
        self._make_state()

    def _make_state(self) -> None:
        """Create the moments now, since torch makes them only at the first step and a resume comes before it."""
        for group in self._torch.param_groups:
            for parameter in group["params"]:
                state = self._torch.state[parameter]
                state["step"] = torch.zeros((), dtype=torch.float32)
                for name in MOMENTS:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    @property
    def _torch(self) -> torch.optim.Optimizer:
        (only,) = getattr(self._optimizer, "chained_optimizers", [self._optimizer])
        return only.optimizer

    def step(self, learning_rate: float) -> float:
        """One update from the finished gradients; returns their global norm before clipping.

        Raises:
            TrainingFault: the norm is not finite; nothing was changed.
        """
        self._optimizer.prepare_grads()
        norm = float(self._optimizer.get_grad_norm())
        if not math.isfinite(norm):
            raise TrainingFault(f"gradient norm: expected a finite number, got {norm}; the policy was not updated")
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        # prepare_grads let .grad point at main_grad; the next backward pass would accumulate into it twice.
        self._optimizer.zero_grad()
        self.steps += 1
        return norm

    def moment(self, parameter: Tensor, name: str) -> Tensor:
        """A moment of one local parameter, to read or to fill in place."""
        return self._torch.state[parameter][name]

    def set_steps(self, steps: int) -> None:
        """Continue the bias correction after `steps` updates."""
        self.steps = steps
        for state in self._torch.state.values():
            state["step"].fill_(steps)
