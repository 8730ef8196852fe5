"""Graph passes, one a file, each `pass(model) -> result`."""
