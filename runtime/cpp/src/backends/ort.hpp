// ONNX Runtime: opens a bundle's graph and, on the CPU, runs it on buffers bound once.
// Port of runtime/backends/ort.py.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/backend.hpp"
#include "bundle/reader.hpp"

namespace ouro::core {

// Opens a verified bundle on the CPU, or on the first GPU through ONNX Runtime's CUDA provider;
// arguments and errors as for open_backend.
std::shared_ptr<Backend> open_cpu(const Bundle& bundle, std::optional<std::int64_t> threads,
                                  std::optional<std::int64_t> accuracy_level);
std::shared_ptr<Backend> open_cuda(const Bundle& bundle, std::optional<std::int64_t> threads,
                                   std::optional<std::int64_t> accuracy_level);

// An error of ONNX Runtime without where in its own source it arose: file, line and function with
// its arguments. Not by std::regex, whose stack grows with a text that a graph can write.
std::string leave_out_source(std::string text);

// The execution providers that the loaded ONNX Runtime was built with, its own names.
std::vector<std::string> list_providers();
}  // namespace ouro::core
