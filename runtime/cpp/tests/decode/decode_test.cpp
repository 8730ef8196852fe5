// Draws, choices, buckets and groups are those of the vectors, which any language runs.
#include <catch2/catch.hpp>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "bundle/json.hpp"
#include "bundle/manifest.hpp"
#include "decode/decoder.hpp"
#include "decode/kv_cache.hpp"
#include "decode/options.hpp"
#include "decode/sampling.hpp"
#include "error.hpp"

using namespace ouro::core;  // NOLINT: a test

namespace {

const SamplingSpec kNeutral = {0.0, 0, 1.0, 0.0, 1.0};

nlohmann::json read_cases(const char* name) {
  std::ifstream file(std::string(OURO_SOURCE_DIR "/tests/vectors/") + name);
  REQUIRE(file.good());
  return nlohmann::json::parse(file).at("cases");
}

std::uint64_t whole(const nlohmann::json& text) { return std::stoull(text.get<std::string>()); }

Options greedy() {
  Options options;
  options.seed = 1;
  return check_options(options, kNeutral);
}

}  // namespace

TEST_CASE("draws are those of the vectors") {
  for (const auto& one : read_cases("draws.json")) {
    CHECK(uniform(whole(one["seed"]), whole(one["number"])) == one["uniform"].get<double>());
  }
}

TEST_CASE("choices are those of the vectors") {
  for (const auto& one : read_cases("choices.json")) {
    const auto logits = one["logits"].get<std::vector<float>>();
    const auto& given = one["options"];
    Options options;
    options.temperature = given["temperature"].get<double>();
    options.top_k = given["top_k"].get<std::int64_t>();
    options.top_p = given["top_p"].get<double>();
    options.min_p = given["min_p"].get<double>();
    options.repetition_penalty = given["repetition_penalty"].get<double>();
    options.seed = whole(one["seed"]);
    Sampler sampler(check_options(options, kNeutral), one["prompt"].get<Tokens>());
    for (const auto& token : one["tokens"]) {
      CHECK(sampler.choose(logits.data(), logits.size()) == token.get<Token>());
    }
  }
}

TEST_CASE("a penalty that makes logits infinite is refused") {
  for (const double temperature : {0.0, 1.0}) {
    Options options;
    options.temperature = temperature;
    options.min_p = 0.1;
    options.repetition_penalty = 1e-308;
    options.seed = 1;
    const float logits[] = {1, 2, 3};
    CHECK_THROWS_AS(Sampler(check_options(options, kNeutral), {2}).choose(logits, 3), Error);
  }
}

TEST_CASE("the largest logit is found in any place, the first of equal ones") {
  for (const std::size_t size : {1U, 16U, 255U, 256U, 257U, 1000U, 49152U}) {
    for (const std::size_t place : {std::size_t{0}, size / 3, size / 2, size - 1}) {
      std::vector<float> logits(size, -3.0F);
      logits[place] = 2.0F;
      logits[size - 1] = 2.0F;
      CHECK(Sampler(greedy(), {}).choose(logits.data(), size) == static_cast<Token>(place));
    }
  }
}

TEST_CASE("logits that are no numbers are refused wherever they stand") {
  const float infinity = std::numeric_limits<float>::infinity();
  for (const std::size_t place : {0U, 7U, 300U, 999U}) {
    for (const float odd : {std::nanf(""), infinity}) {
      std::vector<float> logits(1000, 1.0F);
      logits[place] = odd;
      CHECK_THROWS_AS(Sampler(greedy(), {}).choose(logits.data(), 1000), Error);
    }
    std::vector<float> logits(1000, 1.0F);
    logits[place] = -infinity;  // a token that is ruled out is none of these
    CHECK(Sampler(greedy(), {}).choose(logits.data(), 1000) == (place == 0 ? 1 : 0));
  }
}

TEST_CASE("log-probabilities are of the softmax, the best first") {
  Options options = greedy();
  options.logprobs = 2;
  const std::vector<float> logits = {0.0F, 2.0F, 1.0F, 2.0F};
  const auto found = Sampler(options, {}).describe(logits.data(), 4, 2);
  REQUIRE(found);
  const double whole_sum = 1.0 + std::exp(1.0) + 2.0 * std::exp(2.0);
  CHECK(found->logprob == Approx(std::log(std::exp(1.0) / whole_sum)));
  REQUIRE(found->best.size() == 2);
  CHECK(found->best[0].first == 1);
  CHECK(found->best[1].first == 3);
}

TEST_CASE("numbers are shown as Python shows them") {
  CHECK(repr(1.0) == "1.0");
  CHECK(repr(-0.5) == "-0.5");
  CHECK(repr(1e-5) == "1e-05");
  CHECK(repr(1e16) == "1e+16");
  CHECK(repr(123456789.0) == "123456789.0");
  CHECK(repr(0.0001) == "0.0001");
  CHECK(repr(std::nan("")) == "nan");
}

TEST_CASE("the cache grows by the buckets of the vectors") {
  for (const auto& one : read_cases("buckets.json")) {
    CHECK(capacity_for(one["slots"], one["positions"]) == one["capacity"].get<std::int64_t>());
  }
}

TEST_CASE("prompts are grouped so that padding never costs more than a call") {
  using Groups = std::vector<std::vector<std::size_t>>;
  CHECK(group_lengths({5}, 32) == Groups{{0}});
  CHECK(group_lengths({5, 6, 7}, 32) == Groups{{0, 1, 2}});
  CHECK(group_lengths({5, 100, 6}, 32) == Groups{{1}, {0, 2}});
}

TEST_CASE("a graph that says what no row took is refused") {
  Manifest manifest{};
  manifest.precision = "fp32";
  manifest.model.hidden_size = 8;
  manifest.model.num_attention_heads = manifest.model.num_key_value_heads = 1;
  manifest.model.head_dim = 8;
  manifest.model.recurrent_layers = 1;
  KVCache cache(manifest, std::make_shared<HostMemory>(), {3, 2}, 16);
  for (const std::vector<std::int64_t>& took :
       {std::vector<std::int64_t>{4, 2}, {3, 0}, {3, -1}, {std::int64_t{1} << 58, 1}}) {
    CHECK_THROWS_AS(cache.settle(took.data()), Error);
    CHECK(cache.row_depth() == std::vector<std::int64_t>{3, 2});
  }
  const std::int64_t fine[] = {1, 2};
  cache.settle(fine);
  CHECK(cache.row_depth() == std::vector<std::int64_t>{1, 2});
}
