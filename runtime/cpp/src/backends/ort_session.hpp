// What the backends on ONNX Runtime share. Only for files that include its headers anyway.
#pragma once

#ifndef ORT_API_MANUAL_INIT
#define ORT_API_MANUAL_INIT
#endif
#include <onnxruntime_cxx_api.h>

#include <map>
#include <memory>
#include <optional>
#include <string>

#include "backends/backend.hpp"
#include "bundle/reader.hpp"
#include "error.hpp"

namespace ouro::core {

// An open graph, whose tensors are those of its manifest.
struct OrtGraph {
  Ort::Env env;
  Ort::Session session;
  std::map<std::string, DType> input_types;
  std::vector<std::string> output_names;
};

// Makes ONNX Runtime's functions known to this library. Throws engine_error where the one that is
// loaded is too old.
void load_ort();
// Opens the graph of a verified bundle; `cuda` on the first GPU, which no other device replaces.
std::unique_ptr<OrtGraph> open_graph(const Bundle& bundle, bool cuda,
                                     std::optional<std::int64_t> threads,
                                     std::optional<std::int64_t> accuracy_level);
// A tensor over memory that its owner keeps; `info` says whose memory it is.
Ort::Value wrap_tensor(const OrtMemoryInfo* info, void* data, const Shape& shape, DType dtype);
// Binds the tensors of the host, or the buffers, of which `info` says whose memory they are.
void bind_host_inputs(Ort::IoBinding& binding, const Bindings& bindings);
void bind_buffers(Ort::IoBinding& binding, const OrtMemoryInfo* info, const Bindings& bindings);
// Runs the graph on arrays of the host, cast to its types; returns every output.
std::map<std::string, HostArray> run_once(OrtGraph& graph,
                                          const std::map<std::string, HostArray>& inputs);
// ONNX Runtime's error while it ran, as one of ours.
Error run_error(const std::exception& error);

}  // namespace ouro::core
