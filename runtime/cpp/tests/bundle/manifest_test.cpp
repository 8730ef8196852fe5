// The shared vectors of manifests, and what a manifest that is taken says.
#include "bundle/manifest.hpp"

#include <catch2/catch.hpp>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "bundle/hashing.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

using Data = nlohmann::ordered_json;

Data load_vectors() {
  std::ifstream file(OURO_SOURCE_DIR "/tests/vectors/manifests.json");
  return Data::parse(file);
}

// The refusal of a text, or of a call; fails where it is taken.
template <class Call>
Error refusal(Call&& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  FAIL("it was taken");
  throw;
}

Error refusal_of(const std::string& text) {
  return refusal([&] { parse_manifest_text(text); });
}

TEST_CASE("manifests of the vectors are taken and refused") {
  const Data vectors = load_vectors();
  parse_manifest_text(vectors["manifest"].dump());
  std::set<std::string> problems;
  REQUIRE(vectors["cases"].size() > 50);
  for (const Data& one : vectors["cases"]) {
    Data manifest = vectors["manifest"];
    Data* inner = &manifest;
    for (const Data& key : one["keys"]) inner = &(*inner)[key.get<std::string>()];
    *inner = one["value"];
    const Error error = refusal_of(manifest.dump());
    CAPTURE(manifest.dump());
    CHECK(static_cast<int>(error.code()) == vectors["code"].get<int>());
    CHECK(error.problem().find('\n') == std::string::npos);
    problems.insert(error.problem());
  }
  CHECK(problems.size() > 45);
}

TEST_CASE("a manifest's tensors are the contract's") {
  const Data data = load_vectors()["manifest"];
  const Manifest manifest = parse_manifest_text(data.dump());
  const auto check = [](const std::vector<TensorSpec>& found,
                        const std::vector<TensorSpec>& wanted) {
    REQUIRE(found.size() == wanted.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      CHECK(found[i].name == wanted[i].name);
      CHECK(found[i].dtype == wanted[i].dtype);
      CHECK(found[i].shape == wanted[i].shape);
    }
  };
  check(contract::inputs(manifest.model, "fp32"), manifest.graphs.onnx.inputs);
  check(contract::outputs(manifest.model, "fp32"), manifest.graphs.onnx.outputs);
}

TEST_CASE("a manifest says what its JSON does") {
  const Manifest manifest = parse_manifest_text(load_vectors()["manifest"].dump());
  CHECK(manifest.model.hidden_size == 16);
  CHECK(manifest.model.model_type == "llama");
  CHECK(manifest.depth.default_depth == 2);
  CHECK(manifest.depth.trained == std::vector<std::int64_t>{1, 2});
  CHECK_FALSE(manifest.depth.halting);
  CHECK_FALSE(manifest.quantization);
  CHECK(manifest.tokenizer.eos_token == "<end>");
  CHECK_FALSE(manifest.tokenizer.bos_token_id);
  CHECK(manifest.parity.float_type == "float32");
  CHECK(manifest.parity.relative_l2 == 1e-5);
  CHECK(manifest.files.front().first == "model.onnx");
  CHECK(manifest.cache_dtype() == std::string("float32"));
}

TEST_CASE("a halter and looped layers have their tensors") {
  ModelSpec model = parse_manifest_text(load_vectors()["manifest"].dump()).model;
  model.halting = true;
  model.recurrent_layers = 4;
  const auto inputs = contract::inputs(model, "fp16"), outputs = contract::outputs(model, "fp16");
  CHECK(inputs.back().name == contract::kHaltThreshold);
  CHECK(outputs.back().name == contract::kDepthUsed);
  const TensorSpec& keys = inputs[inputs.size() - 4];
  CHECK(keys.name == "past_key_values.recurrent.key");
  CHECK(keys.dtype == "float16");
  REQUIRE(keys.shape.size() == 5);
  CHECK(keys.shape[1] == Dimension("4 * slots"));
  CHECK(contract::resolve_size(keys.shape[1], {{"slots", 3}}) == 12);
  CHECK(contract::resolve_size(inputs[2].shape[1], {{"sequence", 5}, {"past_sequence", 7}}) == 12);
  CHECK(refusal([&] { contract::resolve_size(keys.shape[1], {}); }).code() == Code::kEngine);
}

TEST_CASE("errors are Python's, to the letter") {
  CHECK(refusal_of("{\"a\": \"\xc3\xa9\"\n x").problem() ==
        "manifest.json is not JSON: Expecting ',' delimiter: line 2 column 2 (char 11)");
  CHECK(refusal_of("\"\xe2\x82").problem() ==
        "manifest.json is not JSON: 'utf-8' codec can't decode bytes in position 1-2: unexpected "
        "end of data");
  CHECK(refusal_of("[NaN]").problem() == "manifest.json is not JSON: NaN is not a JSON number");
  CHECK(refusal_of("{\"it's\": 1, \"it's\": 2}").problem() ==
        "manifest.json is not JSON: the key \"it's\" appears twice");
  CHECK(refusal_of("[]").problem() == "manifest.json holds a list, not an object");
  const Error newer = refusal_of("{\"format_version\": 5}");
  CHECK(newer.problem() == "bundle format_version 5 is not the 4 that this version reads");
  CHECK(newer.cure() == "update ouroboros");
  CHECK(refusal_of("{\"format_version\": 1e22}").problem() ==
        "bundle format_version 1e+22 is not the 4 that this version reads");
  CHECK(
      refusal_of("{\"format_version\": {\"\xc2\xa0\": [true, null, -0.00001, \"\\n\"]}}")
          .problem() ==
      "bundle format_version {'\\xa0': [True, None, -1e-05, '\\n']} is not the 4 that this version "
      "reads");
}

TEST_CASE("text beyond reason is refused, not followed") {
  for (const char* opening : {"[", "{\"a\":"}) {
    std::string text;
    for (int i = 0; i < 100'000; ++i) text += opening;
    CHECK(refusal_of(text).problem().find("maximum recursion depth exceeded") != std::string::npos);
  }
  CHECK(refusal_of(std::string(5000, '9')).problem().find("4300 digits") != std::string::npos);
  const std::string nested = std::string(900, '[') + std::string(900, ']');
  CHECK(refusal_of("{\"format_version\": " + nested + "}").problem().find("[[[[") !=
        std::string::npos);
}

TEST_CASE("the manifest's hash is of its bytes") {
  const std::string text = "{}";
  CHECK(hash_text("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::string said = hash_text(text) + "  manifest.json\n", other = "0" + said.substr(1);
  check_hash(text, &said);
  CHECK(refusal([&] { check_hash(text, &other); }).problem() ==
        "manifest.json is damaged or was changed: its sha256 is not the one in manifest.sha256");
  CHECK(refusal([&] { check_hash(text, nullptr); }).problem() ==
        "manifest.json has no format_version");
}

TEST_CASE("names of files stay in the bundle") {
  for (const char* name : {"a", "plans/a.plan", "a b", ".hidden", "..a", "\xc3\xa9"})
    check_file_name(name);
  for (const char* name :
       {"", "/a", "a/", "./a", "a/./b", "..", "a/../b", "a//b", "a\\b", "C:a", "*", "a\nb"}) {
    CAPTURE(name);
    CHECK(refusal([&] { check_file_name(name); }).code() == Code::kBundle);
  }
}

}  // namespace
}  // namespace ouro::core
