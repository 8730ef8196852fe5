// Any bytes as text to a tokenizer of each family: streamed a token at a time, its text is that of
// decoding at once, and what a stop scanner lets through is its beginning.
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "text/codec.hpp"
#include "text/stop_strings.hpp"
#include "text/stream.hpp"

namespace {

const std::vector<ouro::core::Codec>& codecs() {
  static const std::vector<ouro::core::Codec> loaded = [] {
    std::ifstream file(OURO_SOURCE_DIR "/runtime/cpp/tests/text/tokens.json");
    std::vector<ouro::core::Codec> found;
    for (const auto& one : nlohmann::json::parse(file)) {
      found.push_back(ouro::core::Codec::from_json(one.at("tokenizer").dump(), {}));
    }
    return found;
  }();
  return loaded;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const ouro::core::Codec& codec : codecs()) {
    const ouro::core::Tokens ids = codec.encode(text);
    ouro::core::TextStream stream(codec, {});
    ouro::core::StopScanner scanner({"\n\n", "</s>"});
    std::string streamed, shown;
    for (const auto token : ids) {
      const std::string piece = stream.push(token);
      streamed += piece;
      if (!scanner.found()) shown += scanner.push(piece, stream.pending(), codec.special(token));
    }
    streamed += stream.flush();
    if (streamed != codec.decode(ids)) __builtin_trap();
    if (streamed.compare(0, shown.size(), shown) != 0) __builtin_trap();
  }
  return 0;
}
