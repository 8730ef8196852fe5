"""Tokens and text: codec, stream, stop strings, chat."""
