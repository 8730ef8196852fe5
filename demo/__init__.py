"""The demo: the whole chain on a real model."""
