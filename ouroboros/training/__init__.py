"""A training run: recipe, trainer, state and pictures."""
