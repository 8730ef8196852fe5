// Any bytes as a manifest: read, or refused as a bundle's fault.
#include <cstdint>
#include <string_view>

#include "bundle/manifest.hpp"
#include "error.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    ouro::core::parse_manifest_text(text);
  } catch (const ouro::core::Error& error) {
    if (error.code() != ouro::core::Code::kBundle) __builtin_trap();
  }
  return 0;
}
