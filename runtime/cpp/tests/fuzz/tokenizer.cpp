// Any bytes as a tokenizer.json: one that is taken encodes and decodes, or says what it lacks.
#include <cstdint>
#include <string>

#include "error.hpp"
#include "text/codec.hpp"
#include "text/stream.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using ouro::core::Code;
  try {
    const auto codec =
        ouro::core::Codec::from_json(std::string(reinterpret_cast<const char*>(data), size), {});
    try {
      ouro::core::Tokens ids = codec.encode(" It's 12\n\n\xc3\xa9\xcc\x81 <s>\xff");
      ids.insert(ids.end(), {0, 1, -1, 1 << 30});
      codec.decode(ids);
      ouro::core::TextStream stream(codec, ids);
      for (const auto token : ids) stream.push(token);
      stream.flush();
    } catch (const ouro::core::Error& error) {
      // A part that is not read here, or what tokenizers breaks off at too.
      if (error.code() != Code::kEngine && error.code() != Code::kBundle) __builtin_trap();
    }
  } catch (const ouro::core::Error& error) {
    if (error.code() != Code::kBundle) __builtin_trap();
  }
  return 0;
}
