"""The training system: configuration, data, policy, rollout, trainer, checkpoints and the command line."""
