// Streams and stop strings: those of the vectors, and what they promise on random tokens and texts.
#include <catch2/catch.hpp>

#include <algorithm>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "error.hpp"
#include "text/codec.hpp"
#include "text/stop_strings.hpp"
#include "text/stream.hpp"
#include "text/unicode.hpp"

using namespace ouro::core;  // NOLINT: a test

namespace {

// Kinds of decoders that are not read here.
const std::set<std::string> kStrange = {"wordpiece", "bpe suffix", "ctc", "regex over tokens"};

struct Vectors {
  std::map<std::string, Codec> codecs;
  nlohmann::json cases;
};

const Vectors& vectors() {
  static const Vectors read = [] {
    std::ifstream file(OURO_SOURCE_DIR "/tests/vectors/streams.json");
    const auto whole = nlohmann::json::parse(file);
    Vectors made{{}, whole.at("cases")};
    for (const auto& [kind, tokenizer] : whole.at("tokenizers").items()) {
      made.codecs.emplace(kind, Codec::from_json(tokenizer.dump(), {}));
    }
    return made;
  }();
  return read;
}

// What a row of runtime/decode/generation.py shows, one piece a token.
struct Row {
  Row(const Codec& known, const Tokens& prompt, std::vector<std::string> given, std::size_t count)
      : codec(known), stream(known, prompt), scanner(given), stops(std::move(given)), most(count) {}

  std::string scan(const std::string& piece, const std::optional<std::string>& special) {
    if (!special && stops.empty()) return piece;
    return scanner.push(piece, stream.pending(), special);
  }

  std::string take(Token token) {
    ++taken;
    std::string shown = scan(stream.push(token), codec.special(token));
    if (scanner.found()) {
      reason = "stop";
    } else if (taken >= most) {
      shown += scan(stream.flush(), std::nullopt);
      reason = scanner.found() ? "stop" : "length";
      if (!scanner.found()) shown += scanner.flush();
    }
    return shown;
  }

  const Codec& codec;
  TextStream stream;
  StopScanner scanner;
  std::vector<std::string> stops;
  std::size_t most, taken = 0;
  std::string reason;
};

std::size_t alike(const std::string& left, const std::string& right) {
  const auto [end, other] = std::mismatch(left.begin(), left.end(), right.begin(), right.end());
  auto place = static_cast<std::size_t>(end - left.begin());
  while (place > 0 && place < left.size() && continues(left[place])) --place;
  return place;
}

// The definition: the whole, without what it and the prompt begin with alike.
std::string expected(const Codec& codec, Tokens prompt, const Tokens& tokens) {
  const std::string start = codec.decode(prompt);
  prompt.insert(prompt.end(), tokens.begin(), tokens.end());
  const std::string whole = codec.decode(prompt);
  return whole.substr(alike(start, whole));
}

// Tokens in stretches of one kind, so that characters get whole and runs get long.
Tokens random_run(std::mt19937& draw, Token size, std::size_t length) {
  const auto below = [&](Token most) {
    return static_cast<Token>(draw() % static_cast<unsigned>(most));
  };
  Tokens tokens;
  while (tokens.size() < length) {
    const Token low = below(size), high = std::min(size, low + 1 + below(40));
    for (Token left = 1 + below(8); left > 0; --left) tokens.push_back(low + below(high - low));
  }
  tokens.resize(length);
  return tokens;
}

std::pair<std::string, bool> scan(const std::vector<std::string>& stops,
                                  const std::vector<std::string>& pieces) {
  StopScanner scanner(stops);
  std::string shown;
  for (const std::string& piece : pieces) {
    shown += scanner.push(piece);
    if (scanner.found()) return {shown, true};
  }
  return {shown + scanner.flush(), false};
}

}  // namespace

TEST_CASE("streams are those of the vectors") {
  std::size_t run = 0;
  for (const auto& one : vectors().cases) {
    const auto kind = one.at("tokenizer").get<std::string>();
    if (kStrange.count(kind)) continue;
    INFO(kind << " " << one.dump());
    const auto tokens = one.at("tokens").get<Tokens>();
    Row row(vectors().codecs.at(kind), one.at("prompt").get<Tokens>(),
            one.at("stop").get<std::vector<std::string>>(), tokens.size());
    std::vector<std::string> pieces;
    for (const Token token : tokens) {
      pieces.push_back(row.take(token));
      if (!row.reason.empty()) break;
    }
    CHECK(pieces == one.at("pieces").get<std::vector<std::string>>());
    CHECK(row.reason == one.at("finish_reason").get<std::string>());
    ++run;
  }
  CHECK(run == vectors().cases.size() - 6 * kStrange.size());
}

TEST_CASE("a decoder that is not read here is refused, and its streams have no text") {
  for (const std::string& kind : kStrange) {
    INFO(kind);
    const Codec& codec = vectors().codecs.at(kind);
    CHECK_FALSE(codec.decodes());
    CHECK_FALSE(codec.readable());
    CHECK_THROWS_AS(codec.decode({3}), Error);
    TextStream stream(codec, {3, 4});
    CHECK(stream.push(5).empty());
    CHECK(stream.pending().empty());
    CHECK(stream.flush().empty());
    CHECK(codec.special(0) == "<s>");
    CHECK(codec.skips(0));
    CHECK_FALSE(codec.skips(3));
  }
}

TEST_CASE("a stream gives what decoding at once gives, with every tokenizer") {
  std::mt19937 draw(0);
  const std::string hard = "\xF0\x9F\x98\x80\xC3\xA9\xE8\xAA\x9E a\xF0\x9F\x98\x80";
  for (const auto& [kind, codec] : vectors().codecs) {
    if (!codec.decodes()) continue;
    INFO(kind);
    Token size = 0;
    while (size < 3 || !codec.skips(size)) ++size;
    size += 2;  // a model may have more rows
    for (int number = 0; number < 150; ++number) {
      const Tokens prompt = random_run(draw, size, draw() % 30);
      Tokens tokens = random_run(draw, size, number % 50 == 0 ? 300 : draw() % 40);
      if (number % 3 == 0 && codec.readable()) {  // characters of several bytes, cut at random
        Tokens text = codec.encode(hard + hard, false);
        text.erase(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(draw() % 5));
        tokens.insert(tokens.begin(), text.begin(), text.end());
      }
      TextStream stream(codec, prompt);
      std::string shown;
      for (const Token token : tokens) {
        shown += stream.push(token);
        REQUIRE(is_utf8(shown));
      }
      REQUIRE(shown + stream.pending() == expected(codec, prompt, tokens));
      REQUIRE(shown + stream.flush() == expected(codec, prompt, tokens));
    }
  }
}

TEST_CASE("a stream outlives the codec that it was given") {
  std::optional<Codec> codec = vectors().codecs.at("byte-level");
  const Tokens ids = codec->encode("hi");
  TextStream stream(*codec, {});
  codec.reset();
  CHECK(stream.push(ids[0]) + stream.push(ids[1]) + stream.flush() == "hi");
}

TEST_CASE("special tokens are written in their places") {
  CHECK(write_specials("abc", {}) == "abc");
  CHECK(write_specials("abc", {{0, "<s>"}, {2, "|"}, {2, "/"}, {3, "</s>"}}) == "<s>ab|/c</s>");
  CHECK(write_specials("ab", {{9, "!"}}) == "ab!");
}

TEST_CASE("a stop string in several pieces is never shown") {
  using Shown = std::pair<std::string, bool>;
  CHECK(scan({"END"}, {"a", "b", "E", "N", "x", "E", "N", "D", "y"}) == Shown("abENx", true));
  CHECK(scan({"END"}, {"a", "EN"}) == Shown("aEN", false));
  CHECK(scan({"aab"}, {"a", "a", "a", "b"}) == Shown("a", true));
  CHECK(scan({"\n\n", "User:"}, {"Hi\nUs", "er: x"}) == Shown("Hi\n", true));
  CHECK(scan({"world", "lo"}, {"hello world"}) == Shown("hel", true));
  CHECK(scan({}, {"a", "b"}) == Shown("ab", false));
  CHECK(scan({"\xC3\xA9t\xC3\xA9"}, {"un \xC3\xA9", "t\xC3\xA9"}) == Shown("un ", true));
}

TEST_CASE("stop strings are found as in the whole text") {
  std::mt19937 draw(0);
  for (int number = 0; number < 300; ++number) {
    std::string text, short_stop, long_stop;
    for (int left = 0; left < 30; ++left) text += draw() % 2 ? 'a' : 'b';
    for (int left = 0; left < 3; ++left) short_stop += draw() % 2 ? 'a' : 'b';
    for (int left = 0; left < 5; ++left) long_stop += draw() % 2 ? 'a' : 'b';
    std::vector<std::string> pieces;
    for (std::size_t place = 0; place < text.size();) {
      pieces.push_back(text.substr(place, 1 + draw() % 4));
      place += pieces.back().size();
    }
    const auto [shown, found] = scan({short_stop, long_stop}, pieces);
    const std::size_t first = std::min(text.find(short_stop), text.find(long_stop));
    CHECK(found == (first != std::string::npos));
    CHECK(text.compare(0, shown.size(), shown) == 0);
    CHECK(shown.find(short_stop) == std::string::npos);
    CHECK(shown.find(long_stop) == std::string::npos);
    CHECK((found ? shown.size() >= first : shown == text));
    CHECK(scan({short_stop}, pieces).first == text.substr(0, text.find(short_stop)));
  }
}

TEST_CASE("a stop string may hold special tokens and text that is pending") {
  StopScanner scanner({"b</s>c"});
  CHECK(scanner.push("ab", "", "</s>") == "a");
  CHECK(scanner.push("c").empty());
  CHECK(scanner.found());
  StopScanner pending({"xy"});
  CHECK(pending.push("a", "xy") == "a");
  CHECK(pending.found());
  StopScanner held({"xy"});
  CHECK(held.push("ax", "z") == "a");
  CHECK_FALSE(held.found());
  CHECK(held.flush() == "x");
}
