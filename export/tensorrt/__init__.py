"""TensorRT plans: built in a child process, and given new weights."""
