// Which ONNX Runtime this library runs on: the one that the program holds already, or else the one
// that the loader finds. Never linked: a link would ask for the exact release it was made against.
#pragma once

struct OrtApiBase;

namespace ouro::core {

// The entry to ONNX Runtime, the same one at every call; loads it at the first. It stays loaded.
// Throws engine_error where there is none.
const OrtApiBase& find_onnxruntime();

}  // namespace ouro::core
