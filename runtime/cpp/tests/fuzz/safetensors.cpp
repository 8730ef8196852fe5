// Any bytes as recorded cases: every tensor lies inside them, or they are refused.
#include <cstdint>
#include <string>

#include "bundle/safetensors.hpp"
#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const ouro::core::Safetensors file(std::string(reinterpret_cast<const char*>(data), size),
                                       "cases");
    unsigned sum = 0;
    for (const auto& [name, tensor] : file.tensors()) {
      for (std::size_t at = 0; at < tensor.bytes; ++at) {
        sum += static_cast<unsigned char>(tensor.data[at]);
      }
    }
    if (sum == 0xFFFFFFFF) __builtin_trap();  // so that it is computed
  } catch (const ouro::core::Error& error) {
    if (error.code() != ouro::core::Code::kBundle) __builtin_trap();
  }
  return 0;
}
