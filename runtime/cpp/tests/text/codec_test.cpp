// tokenizer.json: the tokens of Hugging Face for each family, what is refused, and damaged files.
#include <catch2/catch.hpp>

#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "error.hpp"
#include "text/codec.hpp"
#include "text/stream.hpp"

using namespace ouro::core;  // NOLINT: a test
using nlohmann::json;

namespace {

// Tokenizers and the tokens that Hugging Face's encode has for texts, which are in hexadecimal:
// compare_tokenizers.py writes them.
const json& vectors() {
  static const json read = [] {
    std::ifstream file(OURO_SOURCE_DIR "/runtime/cpp/tests/text/tokens.json");
    return json::parse(file);
  }();
  return read;
}

Codec make(const json& tokenizer, Tokens prefix = {}) {
  return Codec::from_json(tokenizer.dump(), std::move(prefix));
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (std::size_t place = 0; place < digits.size(); place += 2) {
    bytes.push_back(static_cast<char>(std::stoi(digits.substr(place, 2), nullptr, 16)));
  }
  return bytes;
}

// A byte-level tokenizer with a merge, small enough to be damaged anywhere.
json small() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 5, "content": "<s>", "single_word": false, "lstrip": false,
                      "rstrip": true, "normalized": false, "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}]},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                      "use_regex": true},
    "post_processor": null,
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteLevel", "add_prefix_space": false,
                "trim_offsets": true}, {"type": "Strip", "content": "x", "start": 1, "stop": 1}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
              "vocab": {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "abab": 4}, "merges": ["a b", "ab ab"]}})");
}

std::string refusal(const std::function<void()>& act, Code code) {
  try {
    act();
  } catch (const Error& error) {
    CHECK(error.code() == code);
    return error.what();
  }
  return "none";
}

std::string refuse_json(const json& tokenizer) {
  return refusal([&] { make(tokenizer); }, Code::kBundle);
}

// Uses a tokenizer in every way; only what an engine may say is let through.
void use(const Codec& codec, std::mt19937& draw) {
  std::string text = "ab <s>  a'll e\xCC\x81 12";
  for (int left = 0; left < 8; ++left) text.push_back(static_cast<char>(draw()));
  try {
    Tokens ids = codec.encode(text);
    codec.encode_after({0, 1}, text);
    ids.insert(ids.end(), {0, 1, 2, 3, -1, Token{1} << 40});
    codec.decode(ids);
    TextStream stream(codec, ids);
    for (const Token id : ids) stream.push(id);
    stream.flush();
  } catch (const Error& error) {
    CHECK((error.code() == Code::kEngine || error.code() == Code::kBundle));
  }
}

// Every value of a JSON document.
void collect(json& value, std::vector<json*>& all) {
  all.push_back(&value);
  if (value.is_structured()) {
    for (json& one : value) collect(one, all);
  }
}

}  // namespace

TEST_CASE("texts have the tokens of Hugging Face") {
  for (const auto& [family, entry] : vectors().items()) {
    const Codec codec = make(entry.at("tokenizer"));
    CHECK(codec.readable());
    for (const auto& one : entry.at("texts")) {
      INFO(family << " " << one.dump());
      const Tokens ids = one.at("ids").get<Tokens>();
      CHECK(codec.encode(from_hex(one.at("bytes"))) == ids);
      CHECK(codec.decode(ids) == one.at("plain").get<std::string>());
      CHECK(codec.decode(ids, false) == one.at("whole").get<std::string>());
    }
  }
  CHECK(vectors().size() >= 8);
}

TEST_CASE("a text that continues another has the tokens of Python") {
  int cases = 0;
  for (const auto& [family, entry] : vectors().items()) {
    const Codec codec = make(entry.at("tokenizer"));
    for (const auto& one : entry.at("continued")) {
      INFO(family << " " << one.dump());
      CHECK(codec.encode_after(one.at("before").get<Tokens>(), one.at("text").get<std::string>()) ==
            one.at("ids").get<Tokens>());
      ++cases;
    }
  }
  CHECK(cases > 50);
}

TEST_CASE("the prefix goes before what begins a sequence, and only there") {
  const Codec codec = make(small(), {5, 5});
  CHECK(codec.encode("ab") == Tokens{5, 5, 2});
  CHECK(codec.encode("ab", false) == Tokens{2});
  CHECK(codec.encode("") == Tokens{5, 5});
  CHECK(codec.encode_after({0}, "b") == Tokens{1});
}

TEST_CASE("special tokens are known, and ids that are nobody's left out") {
  const Codec codec = make(small());
  CHECK(codec.encode("ab<s>  ab") == Tokens{2, 5, 2});
  CHECK(codec.special(5) == "<s>");
  CHECK_FALSE(codec.special(2));
  CHECK(codec.skips(5));
  CHECK(codec.skips(99));
  CHECK(codec.skips(-1));
  CHECK_FALSE(codec.skips(2));
  CHECK(codec.decode({2, 5, 99, -1, Token{1} << 40, 0}) == "aba");
  CHECK(codec.decode({2, 5}, false) == "ab<s>");
}

TEST_CASE("a special token that its normalizer writes otherwise is shown") {
  json tokenizer = small();
  tokenizer["normalizer"] = {{"type", "Prepend"}, {"prepend", "a"}};
  tokenizer["added_tokens"][0]["normalized"] = true;
  const Codec codec = make(tokenizer);
  CHECK_FALSE(codec.special(5));
  CHECK_FALSE(codec.skips(5));
  CHECK(codec.decode({2, 5}) == "aba<s>");
}

TEST_CASE("a token that is added twice is as its normalizer wrote it once") {
  json tokenizer = small();
  tokenizer["normalizer"] = {{"type", "Prepend"}, {"prepend", "a"}};
  json& added = tokenizer["added_tokens"];
  added.push_back(added[0]);
  added[0]["normalized"] = true;
  added[0]["special"] = false;
  const Codec codec = make(tokenizer);
  CHECK(codec.decode({2, 5}) == "aba<s>");
  CHECK(codec.encode("<s>") == Tokens{5});
  CHECK_FALSE(codec.special(5));
}

TEST_CASE("how an unknown normalizer writes a token is not guessed") {
  json tokenizer = small();
  tokenizer["normalizer"] = {{"type", "Lowercase"}};
  CHECK(make(tokenizer).decodes());
  tokenizer["added_tokens"][0]["normalized"] = true;
  CHECK_THAT(refusal([&] { make(tokenizer).decode({2}); }, Code::kEngine),
             Catch::Contains("normalizer Lowercase"));
}

TEST_CASE("words of any length are merged alike") {
  const Codec codec = make(small());
  for (const std::size_t pairs : {1U, 2U, 3U, 24U, 25U, 26U, 500U, 20001U}) {
    std::string text;
    for (std::size_t left = pairs; left > 0; --left) text += "ab";
    Tokens expected(pairs / 2, 4);
    if (pairs % 2) expected.push_back(2);
    CHECK(codec.encode(text) == expected);
  }
}

TEST_CASE("a part that is not read here is refused by its name, one way only") {
  json tokenizer = small();
  tokenizer["pre_tokenizer"] = {
      {"type", "Sequence"},
      {"pretokenizers",
       {{{"type", "Punctuation"}, {"behavior", "Isolated"}}, {{"type", "Whitespace"}}}}};
  const Codec words = make(tokenizer);
  CHECK_FALSE(words.readable());
  CHECK(words.decode({2}) == "ab");
  CHECK_THAT(refusal([&] { words.encode("a"); }, Code::kEngine),
             Catch::Contains("pre_tokenizer Sequence(Punctuation, Whitespace)") &&
                 Catch::Contains("give and take token ids"));
  // One letter of a known regular expression, another digit of its count.
  tokenizer = vectors().at("llama3").at("tokenizer");
  std::string& regex =
      tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].get_ref<std::string&>();
  regex.replace(regex.find("{1,3}"), 5, "{1,2}");
  CHECK_FALSE(make(tokenizer).readable());
  tokenizer = small();
  tokenizer["decoder"] = {
      {"type", "CTC"}, {"pad_token", "a"}, {"word_delimiter_token", "b"}, {"cleanup", true}};
  const Codec mute = make(tokenizer);
  CHECK(mute.encode("ab") == Tokens{2});
  CHECK_FALSE(mute.readable());
  CHECK_THAT(refusal([&] { mute.decode({2}); }, Code::kEngine), Catch::Contains("decoder CTC"));
  for (const auto& [key, value, name] : std::vector<std::tuple<const char*, json, const char*>>{
           {"normalizer", {{"type", "Lowercase"}}, "normalizer Lowercase"},
           {"model",
            {{"type", "WordLevel"}, {"vocab", {{"a", 0}}}, {"unk_token", "a"}},
            "model WordLevel"},
           {"model", json::parse(R"({"type": "Unigram", "vocab": [["a", 0.5]]})"),
            "model Unigram"}}) {
    tokenizer = small();
    tokenizer[key] = value;
    const Codec codec = make(tokenizer);
    CHECK_THAT(refusal([&] { codec.encode("a"); }, Code::kEngine), Catch::Contains(name));
    CHECK(codec.decode({0}, false) == "a");
  }
  tokenizer = small();
  tokenizer["model"]["end_of_word_suffix"] = "</w>";
  CHECK_FALSE(make(tokenizer).readable());
}

TEST_CASE("a file that is no tokenizer is refused") {
  for (const char* text :
       {"", "x", "[]", "{}", "3", "{\"model\": 1}", "{\"model\": {}}", "{\"model\"", "\xFF",
        "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}, \"version\": \"2.0\"}",
        "{\"model\": {\"vocab\": {\"a\": 0}, \"merges\": []}} x"}) {
    INFO(text);
    CHECK_THAT(refusal([&] { Codec::from_json(text, {}); }, Code::kBundle),
               Catch::StartsWith("tokenizer.json is not a tokenizer: "));
  }
  const std::string deep(200000, '[');
  CHECK(refusal([&] { Codec::from_json(deep, {}); }, Code::kBundle) != "none");
  std::string decoders = R"({"type": "Fuse"})";
  for (int left = 0; left < 5000; ++left) {
    decoders = R"({"type": "Sequence", "decoders": [)" + decoders + "]}";
  }
  for (const std::size_t depth : {70U, 100000U}) {
    std::string splitter = R"({"type":"Digits","individual_digits":true})";
    std::string before, after;
    for (std::size_t level = 0; level < depth; ++level) {
      before += R"({"type":"Sequence","pretokenizers":[)";
      after += "]}";
    }
    json tokenizer = small();
    tokenizer["pre_tokenizer"] = "here";
    std::string text = tokenizer.dump();
    text.replace(text.find("\"here\""), 6, before + splitter + after);
    CHECK_THAT(refusal([&] { Codec::from_json(text, {}); }, Code::kBundle),
               Catch::Contains("too deep"));
  }
  std::string nested = small().dump();
  nested.replace(nested.find("{\"decoders\""), 0, decoders + ", \"other\": ");
  CHECK_THAT(refusal([&] { Codec::from_json(nested, {}); }, Code::kBundle),
             Catch::Contains("too deep"));
}

TEST_CASE("values that can't be are refused") {
  const auto refused = [](const char* pointer, const json& value) {
    json tokenizer = small();
    tokenizer[json::json_pointer(pointer)] = value;
    INFO(pointer << " " << value.dump());
    CHECK(refuse_json(tokenizer) != "none");
  };
  for (const json& id :
       {json(-1), json(1.0), json("1"), json(nullptr), json(4294967295U), json(1e300),
        json(18446744073709551615U), json::array({1}), json::object({{"a", 1}})}) {
    refused("/model/vocab/a", id);
    refused("/added_tokens/0/id", id);
  }
  refused("/model/vocab", json::parse("[1, 2]"));
  refused("/model/merges", "a b");
  refused("/model/merges", json::array({"a b c"}));
  refused("/model/merges", json::array({"ab"}));
  refused("/model/merges", json::array({"a q"}));  // a token that is not there
  refused("/model/merges", json::array({"b a"}));  // what they make is not
  refused("/model/merges", json::parse(R"([["a", "b", "a"]])"));
  refused("/model/merges", json::parse(R"([["a", "b"], "a b"])"));
  refused("/model/merges", json::parse(R"([["a", 1]])"));
  refused("/model/merges", json::parse(R"([{"a": "b"}])"));
  refused("/model/fuse_unk", 1);
  refused("/model/unk_token", 1);
  refused("/normalizer", 1);
  refused("/normalizer", json::object());
  refused("/normalizer/normalizers", 3);
  refused("/pre_tokenizer/add_prefix_space", 3);
  refused("/decoder/decoders/1/content", "xy");
  refused("/decoder/decoders/1/content", "");
  refused("/decoder/decoders/1/start", -1);
  refused("/added_tokens", 3);
  refused("/added_tokens/0/content", nullptr);
  refused("/added_tokens/0/special", "yes");
  json tokenizer = small();
  tokenizer["added_tokens"].push_back(tokenizer["added_tokens"][0]);
  tokenizer["added_tokens"][1]["content"] = "e\xCC\x81";
  tokenizer["added_tokens"].push_back(tokenizer["added_tokens"][1]);
  tokenizer["added_tokens"][2]["content"] = "\xC3\xA9";
  CHECK(refuse_json(tokenizer) == "none");
  tokenizer["added_tokens"][1]["normalized"] = tokenizer["added_tokens"][2]["normalized"] = true;
  CHECK(refuse_json(tokenizer) != "none");  // both are the same text once normalized
  tokenizer["added_tokens"].erase(2);
  tokenizer["added_tokens"][1].erase("lstrip");
  CHECK(refuse_json(tokenizer) != "none");
}

TEST_CASE("merges in a circle end, and an unknown token that is missing is named") {
  json tokenizer = small();
  tokenizer["model"]["vocab"] = json::parse(R"({"a": 0, "b": 1, "": 2, "ab": 0})");
  tokenizer["model"]["merges"] = json::parse(R"([["a", "b"], ["a", ""], ["", "a"], ["", ""]])");
  CHECK(make(tokenizer).encode("abababab") == Tokens(4, 0));
  tokenizer["model"]["unk_token"] = "<unk>";
  CHECK_THAT(refusal([&] { make(tokenizer).encode("c"); }, Code::kBundle),
             Catch::Contains("<unk>"));
}

TEST_CASE("ids may have gaps and be large") {
  json tokenizer = small();
  tokenizer["model"]["vocab"]["ab"] = 4294967294U;
  const Codec codec = make(tokenizer);
  CHECK(codec.encode("ab") == Tokens{4294967294});
  CHECK(codec.decode({4294967294, 4294967295}) == "ab");
}

TEST_CASE("damaged tokenizers are refused or work, and never crash") {
  std::mt19937 draw(0);
  const std::vector<json> values = {nullptr,
                                    true,
                                    0,
                                    -1,
                                    7,
                                    4294967296,
                                    1e308,
                                    "",
                                    "a",
                                    "Ġ",
                                    "\xC3\xA9",
                                    json::array(),
                                    json::object(),
                                    {{"type", "Sequence"}},
                                    {{"type", "Metaspace"}, {"replacement", "a"}},
                                    {"a", "b"}};
  int refused = 0;
  for (int round = 0; round < 4000; ++round) {
    json tokenizer = round % 2 ? small() : vectors().at("tiny").at("tokenizer");
    for (unsigned count = 1 + draw() % 2; count > 0; --count) {
      std::vector<json*> all;
      collect(tokenizer, all);
      json& chosen = *all[draw() % all.size()];
      if (draw() % 3 == 0 && chosen.is_object() && !chosen.empty()) {
        auto victim = chosen.begin();
        std::advance(victim, draw() % chosen.size());
        chosen.erase(victim);
      } else {
        chosen = draw() % 4 == 0 ? *all[draw() % all.size()] : values[draw() % values.size()];
      }
    }
    std::string text = tokenizer.dump();
    if (round % 5 == 0) text[draw() % text.size()] = static_cast<char>(draw());
    try {
      use(Codec::from_json(text, {}), draw);
    } catch (const Error& error) {
      CHECK(error.code() == Code::kBundle);
      ++refused;
    }
  }
  CHECK(refused > 500);
  CHECK(refused < 3900);
}

TEST_CASE("a codec is used from several threads") {
  const auto& entry = vectors().at("qwen2");
  const Codec codec = make(entry.at("tokenizer"));
  std::vector<int> wrong(8, 0);
  std::vector<std::thread> threads;
  for (int& count : wrong) {
    threads.emplace_back([&] {
      for (const auto& one : entry.at("texts")) {
        const Tokens ids = codec.encode(from_hex(one.at("bytes").get<std::string>()));
        count += ids != one.at("ids").get<Tokens>();
        count += codec.decode(ids) != one.at("plain").get<std::string>();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == std::vector<int>(8, 0));
}
