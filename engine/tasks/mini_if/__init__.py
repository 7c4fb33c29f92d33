"""mini-IF: procedural instruction following with exact checkers and experts from a stochastic grammar."""
