"""Arithmetic of the package reasoning-gym, with worked solutions as experts."""
