#include "text/decoder.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <utility>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/bpe.hpp"
#include "text/normalizer.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

constexpr int kNoByte = -1;

const std::array<int, 512>& alphabet_bytes() {
  static const std::array<int, 512> bytes = [] {
    std::array<int, 512> made;
    made.fill(kNoByte);
    for (std::size_t byte = 0; byte < 256; ++byte) {
      made[character_at(byte_alphabet()[byte], 0).code] = static_cast<int>(byte);
    }
    return made;
  }();
  return bytes;
}

// Appends the bytes of a byte-level token; those of one that has another character as they are.
void append_bytes(const std::string& token, std::string& bytes) {
  const std::size_t before = bytes.size();
  for (std::size_t place = 0; place < token.size();) {
    const Character one = character_at(token, place);
    const int byte = one.code < 512 ? alphabet_bytes()[one.code] : kNoByte;
    if (byte == kNoByte) {
      bytes.resize(before);
      bytes += token;
      return;
    }
    bytes.push_back(static_cast<char>(byte));
    place += one.size;
  }
}

// The byte that a token such as <0x0A> stands for; Rust's from_str_radix allows a plus.
int fallback_byte(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return kNoByte;
  const char* const start = token.data() + (token[3] == '+' ? 4 : 3);
  int byte = kNoByte;
  const auto [end, error] = std::from_chars(start, token.data() + 5, byte, 16);
  return error == std::errc() && end == token.data() + 5 && token[3] != '-' ? byte : kNoByte;
}

// Joins runs of byte tokens to texts, or a mark a byte where a run is not UTF-8.
std::vector<std::string> join_fallbacks(std::vector<std::string>& tokens) {
  std::vector<std::string> made;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_utf8(bytes)) {
      made.push_back(bytes);
    } else {
      made.insert(made.end(), bytes.size(), std::string(kUnknown));
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const int byte = fallback_byte(token);
    if (byte != kNoByte) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      flush();
      made.push_back(std::move(token));
    }
  }
  flush();
  return made;
}

std::string join(const std::vector<std::string>& tokens, std::string_view between) {
  std::string text;
  for (std::size_t place = 0; place < tokens.size(); ++place) {
    if (place > 0) text += between;
    text += tokens[place];
  }
  return text;
}

// Takes a character away at the start and the end, up to so many times. tokenizers breaks off where
// both take the same, and where a token ends before the end has been looked at as often as asked.
std::string strip(const std::string& token, const std::string& what, std::size_t start,
                  std::size_t stop) {
  std::size_t from = 0, to = token.size();
  for (; start > 0 && token.compare(from, what.size(), what) == 0; --start) from += what.size();
  for (; stop > 0 && to >= what.size() && token.compare(to - what.size(), what.size(), what) == 0;
       --stop) {
    to -= what.size();
  }
  if (from > to || (stop > 0 && to == 0)) {
    throw bundle_error(
        "the tokenizer can't turn tokens into a text: a token is all that is stripped",
        kOwnTokenizer);
  }
  return token.substr(from, to - from);
}

}  // namespace

std::optional<TokenDecoder> TokenDecoder::read(const json& value) {
  TokenDecoder made;
  made.spaced_ = value.is_null();
  if (made.spaced_) return made;
  for (const json* part : flatten(value, "decoders")) {
    std::optional<Step> step = read_step(*part);
    if (!step) return std::nullopt;
    made.steps_.push_back(std::move(*step));
  }
  return made;
}

std::optional<TokenDecoder::Step> TokenDecoder::read_step(const json& value) {
  const std::string type = value.at("type");
  Step step{};
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.from = value.at("content");
    step.start = value.at("start");
    step.stop = value.at("stop");
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    step.from = value.at("replacement");
    step.drops = value.value("prepend_scheme", "always") != "never";
  } else if (type == "Replace") {
    const json& pattern = value.at("pattern");
    step.kind = Kind::kReplace;
    step.to = value.at("content");
    if (!pattern.count("String") || pattern.at("String") == "") return std::nullopt;
    step.from = pattern.at("String");
  } else {
    return std::nullopt;
  }
  return step;
}

std::string TokenDecoder::decode(std::vector<std::string> tokens) const {
  for (const Step& step : steps_) apply(step, tokens);
  return join(tokens, spaced_ ? " " : "");
}

void TokenDecoder::apply(const Step& step, std::vector<std::string>& tokens) {
  std::string text;
  switch (step.kind) {
    case Kind::kByteLevel:
      for (const std::string& token : tokens) append_bytes(token, text);
      tokens = {to_utf8(text)};
      break;
    case Kind::kFuse:
      tokens = {join(tokens, "")};
      break;
    case Kind::kByteFallback:
      tokens = join_fallbacks(tokens);
      break;
    case Kind::kReplace:
      for (std::string& token : tokens) token = replace_all(token, step.from, step.to);
      break;
    case Kind::kStrip:
      for (std::string& token : tokens) token = strip(token, step.from, step.start, step.stop);
      break;
    case Kind::kMetaspace:
      for (std::size_t place = 0; place < tokens.size(); ++place) {
        tokens[place] = replace_all(tokens[place], step.from, place == 0 && step.drops ? "" : " ");
      }
      break;
  }
}

// Source: runtime/text/stream.py, find_unsettled.
Unsettled TokenDecoder::unsettled(const std::function<Id(const std::string&)>& find) const {
  Unsettled made;
  bool joined = false;
  int patterns = 0;
  for (const Step& step : steps_) {
    if (step.kind == Kind::kByteLevel || step.kind == Kind::kFuse) {
      joined = true;
    } else if (step.kind == Kind::kByteFallback && !joined) {
      // Any byte that is not ASCII, after whole characters, makes their run invalid.
      Id token = kNoId;
      for (int byte = 255; byte > 127 && token == kNoId; --byte) {
        const char* const digits = "0123456789ABCDEF";
        token = find(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + ">");
      }
      if (token != kNoId) made.probes.push_back(token);
    } else if (step.kind == Kind::kReplace && joined && patterns++ == 0) {
      made.pattern = step.from;
    }
  }
  // A match of "aa" may begin at either letter of a text that is cut: no window is right.
  bool bordered = false;
  for (std::size_t size = 1; size < made.pattern.size(); ++size) {
    const std::size_t rest = made.pattern.size() - size;
    bordered |= made.pattern.compare(0, size, made.pattern, rest, size) == 0;
  }
  made.everything = patterns > 1 || bordered;
  return made;
}

}  // namespace ouro::core
