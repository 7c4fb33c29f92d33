"""The LM head chunk by chunk: the loop that the fast backends share, and the `Glue` in which they differ."""
