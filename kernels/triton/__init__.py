"""Triton kernels, for GPUs, or for Triton's interpreter.

Everything is loaded as it is stored, computed in float32 (float64 where the inputs are), and reduced in a fixed order:
no atomics, so results are the same in every run. Half precision enters products only.
"""
