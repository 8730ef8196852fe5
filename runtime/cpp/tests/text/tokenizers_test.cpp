// Tokenizers of the vectors, changed in one place each: what is taken, what is refused with which
// code, and what they make of texts and of tokens.
#include <catch2/catch.hpp>

#include <fstream>
#include <functional>
#include <string>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/codec.hpp"

using namespace ouro::core;  // NOLINT: a test
using nlohmann::json;

namespace {

json changed(json data, const json& change) {
  json* inner = &data;
  const json& keys = change.at("keys");
  const auto step = [](json& at, const json& key) -> json& {
    return key.is_number() ? at.at(key.get<std::size_t>()) : at[key.get<std::string>()];
  };
  for (std::size_t place = 0; place + 1 < keys.size(); ++place) inner = &step(*inner, keys[place]);
  if (change.count("value")) {
    step(*inner, keys.back()) = change["value"];
  } else {
    inner->erase(keys.back().get<std::string>());
  }
  return data;
}

// What a function gives, or the code of its error.
json answer_of(const std::function<json()>& make) {
  try {
    return make();
  } catch (const Error& error) {
    return {{"code", static_cast<int>(error.code())}};
  }
}

json use(const std::string& tokenizer, const json& texts, const json& listed) {
  return answer_of([&] {
    const Codec codec = Codec::from_json(tokenizer, {});
    json tokens = json::array(), decoded = json::array();
    for (const json& text : texts) {
      tokens.push_back(answer_of([&] { return json(codec.encode(text.get<std::string>())); }));
    }
    for (const json& one : listed) {
      const Tokens ids = one.get<Tokens>();
      decoded.push_back(
          answer_of([&] { return json{codec.decode(ids), codec.decode(ids, false)}; }));
    }
    return json{{"tokens", tokens}, {"decoded", decoded}};
  });
}

}  // namespace

TEST_CASE("a changed tokenizer is taken or refused as the vectors have it") {
  std::ifstream file(OURO_SOURCE_DIR "/tests/vectors/tokenizers.json");
  const json vectors = json::parse(file);
  CHECK(vectors.at("cases").size() > 300);
  for (const json& one : vectors.at("cases")) {
    const json& base = vectors.at("tokenizers").at(one.at("tokenizer").get<std::string>());
    json expected = one;
    for (const char* key : {"tokenizer", "keys", "value"}) expected.erase(key);
    json change = one;
    INFO(change.dump());
    CHECK(use(changed(base, one).dump(), vectors["texts"], vectors["ids"]) == expected);
  }
}
