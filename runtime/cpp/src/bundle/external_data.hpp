// The files that an ONNX graph keeps large weights in, read from its bytes with no need of onnx.
#pragma once

#include <filesystem>
#include <set>
#include <string>
#include <string_view>

#include "bundle/reader.hpp"

namespace ouro::core {

// Names of the files that hold a graph's external tensors, as the graph writes them. Throws
// std::invalid_argument: no protobuf.
std::set<std::string> external_files(std::string_view graph);

// Refuses a bundle whose graph names other data files than its manifest lists, and data files that
// are symbolic or hard links: ONNX Runtime opens whatever file the graph names. Throws
// bundle_error. To be called before ONNX Runtime loads the graph.
void check_external_data(const Bundle& bundle);

}  // namespace ouro::core
