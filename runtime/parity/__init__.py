"""Does an engine compute what PyTorch computed? Recorded cases, replayed and compared."""
