"""A model's folder in a Triton repository."""
