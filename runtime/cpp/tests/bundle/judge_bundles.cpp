// What C++ says of bundles, for tests/runtime/cpp/test_bundles.py and test_tokenizers.py. Reads a
// line at a time, the path of a bundle or a command: "json PATH" reads a manifest's text alone,
// "cases PATH" a file of recorded cases, "names PATH" the external data of a bundle, "tokens PATH"
// a tokenizer with what it is asked. Writes one line for each, in JSON: [code, problem, cure], or
// "ok", or what a tokenizer made of each text and of each list of tokens.
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "bundle/external_data.hpp"
#include "bundle/reader.hpp"
#include "bundle/safetensors.hpp"
#include "error.hpp"
#include "text/codec.hpp"

namespace {

using nlohmann::json;
using ouro::core::Error;

json said(const Error& error) {
  return {static_cast<int>(error.code()), error.problem(), error.cure()};
}

// What a function gives, or the error that it ends with.
template <class Make>
json answer_of(const Make& make) {
  try {
    return make();
  } catch (const Error& error) {
    return said(error);
  }
}

// {"tokenizer": the file's text, "texts": [...], "ids": [[...], ...]}: what becomes of each.
json use_tokenizer(const std::string& path) {
  const json asked = json::parse(ouro::core::read_file(path));
  const auto codec = ouro::core::Codec::from_json(asked.at("tokenizer"), {});
  json answers = {{"texts", json::array()}, {"ids", json::array()}};
  for (const json& text : asked.at("texts")) {
    answers["texts"].push_back(
        answer_of([&] { return json{{"ids", codec.encode(text.get<std::string>(), false)}}; }));
  }
  for (const json& listed : asked.at("ids")) {
    const auto ids = listed.get<ouro::core::Tokens>();
    answers["ids"].push_back(answer_of([&] {
      json special = json::array();
      for (const auto id : ids) {
        const auto written = codec.special(id);
        special.push_back(written ? json(*written) : json(codec.skips(id)));
      }
      return json{
          {"plain", codec.decode(ids)}, {"whole", codec.decode(ids, false)}, {"special", special}};
    }));
  }
  return answers;
}

json judge(const std::string& command, const std::string& path) {
  if (command == "tokens") return use_tokenizer(path);
  if (command == "json") {
    ouro::core::parse_manifest_text(ouro::core::read_file(path));
  } else if (command == "cases") {
    const ouro::core::Safetensors cases{std::filesystem::path(path)};
  } else {
    const ouro::core::Bundle bundle = ouro::core::open_bundle(path);
    if (command == "names") ouro::core::check_external_data(bundle);
  }
  return "ok";
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const std::size_t space = line.find(' ');
    const json answer =
        answer_of([&] { return judge(line.substr(0, space), line.substr(space + 1)); });
    std::cout << answer.dump(-1, ' ', false, json::error_handler_t::replace) << std::endl;
  }
}
