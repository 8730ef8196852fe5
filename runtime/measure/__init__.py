"""Speed and held-out loss of an engine."""
