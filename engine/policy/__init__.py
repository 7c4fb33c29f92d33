"""The policy on Megatron-core: the one folder that imports `megatron`."""
