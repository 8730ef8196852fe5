// Any bytes as an ONNX graph: its external files are listed, or it is no protobuf.
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "bundle/external_data.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    ouro::core::external_files({reinterpret_cast<const char*>(data), size});
  } catch (const std::invalid_argument&) {
    return 0;  // no protobuf
  }
  return 0;
}
