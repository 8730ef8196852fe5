"""What runs a graph: ONNX Runtime on the CPU and on CUDA, TensorRT; and what this machine has."""
