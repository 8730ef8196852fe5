"""Requests, the cache, and the loop that turns logits into tokens."""
