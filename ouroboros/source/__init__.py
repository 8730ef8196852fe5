"""Original models: where they lie, what they say of themselves, and their weights."""
