// What a tokenizer.json does to make a text of tokens.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "text/unsettled.hpp"
#include "text/vocabulary.hpp"

namespace ouro::core {

// Any of ByteLevel, Replace of a fixed text, ByteFallback, Fuse, Strip and Metaspace, in a
// sequence; or none, which joins tokens by spaces. Immutable.
class TokenDecoder {
 public:
  // Takes the `decoder` of a tokenizer.json, null included; none where it is of a kind that is not
  // known here. Throws nlohmann's exceptions, and bundle_error, where it is malformed.
  static std::optional<TokenDecoder> read(const nlohmann::json& value);

  // The text of tokens as they are written.
  std::string decode(std::vector<std::string> tokens) const;

  // What it may change at the end of a text; `find` gives the id of a token, or kNoId.
  Unsettled unsettled(const std::function<Id(const std::string&)>& find) const;

 private:
  enum class Kind { kByteLevel, kReplace, kByteFallback, kFuse, kStrip, kMetaspace };
  struct Step {
    Kind kind;
    std::string from, to;             // of kReplace; of kStrip and kMetaspace `from` alone
    std::size_t start = 0, stop = 0;  // of kStrip: how many at most
    bool drops = false;               // of kMetaspace: in the first token
  };

  static std::optional<Step> read_step(const nlohmann::json& value);
  static void apply(const Step& step, std::vector<std::string>& tokens);

  std::vector<Step> steps_;
  bool spaced_ = false;
};

}  // namespace ouro::core
