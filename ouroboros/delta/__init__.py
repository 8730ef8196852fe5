"""Delta checkpoints: all of a checkpoint that its original model does not hold bit for bit."""
