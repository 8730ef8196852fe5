// `ouro-cli bench`: measure a bundle on this machine. Port of runtime/measure/speed.py.

#include <onnxruntime_c_api.h>
#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <thread>

#include "backends/ort_library.hpp"
#include "bundle/say.hpp"
#include "commands.hpp"
#include "decode/sampling.hpp"
#include "defaults.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "metrics.hpp"
#include "output.hpp"
#include "text/stream.hpp"

namespace ouro::cli {
namespace {

// Seconds of each token, of them inside ONNX Runtime, and of the prefill.
struct Timing {
  std::vector<double> token_s, inside_s;
  double prefill_s = 0;
};

// One depth at one context length, batch 1; medians over the repeats.
struct Row {
  std::int64_t depth = 0, context = 0;
  double decode_ms = 0, tokens_per_s = 0, prefill_tokens_per_s = 0, engine_overhead = 0;
  std::int64_t weight_bytes = 0;
  double memory_share = 0;
};

std::size_t available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) return static_cast<std::size_t>(CPU_COUNT(&set));
  return std::max(1U, std::thread::hardware_concurrency());
}

// Times one greedy run, as a stream does it, text included. `context` random tokens are fed first,
// then `tokens` are decoded and timed one by one.
Timing time_decode(core::Engine& engine, std::int64_t depth, std::int64_t context,
                   std::int64_t tokens) {
  const auto size = static_cast<std::size_t>(engine.manifest().model.vocab_size);
  core::Tokens prompt;
  while (static_cast<std::int64_t>(prompt.size()) < context) {
    const double drawn = core::uniform(0, prompt.size());
    prompt.push_back(static_cast<core::Token>(drawn * static_cast<double>(size)));
  }
  const auto decoder = engine.new_decoder({depth});
  core::Options options;
  options.temperature = 0;
  core::Sampler sampler(options, {});
  core::TextStream text(engine.codec(), {});
  Timing timing;
  const core::Stopwatch prefill;
  const std::vector<float> first = decoder->prefill({prompt});
  const float* logits = first.data();
  timing.prefill_s = prefill.seconds();
  for (std::int64_t one = 0; one < tokens; ++one) {
    const double inside = decoder->run_s();
    const core::Stopwatch watch;
    const core::Token token = sampler.choose(logits, size);
    text.push(token);
    logits = decoder->step({token});
    timing.token_s.push_back(watch.seconds());
    timing.inside_s.push_back(decoder->run_s() - inside);
  }
  if (tokens > 4) {  // the first tokens bind buffers and touch new memory
    timing.token_s.erase(timing.token_s.begin(), timing.token_s.begin() + 2);
    timing.inside_s.erase(timing.inside_s.begin(), timing.inside_s.begin() + 2);
  }
  return timing;
}

// The rate at which this machine reads memory, in bytes a second: the best of several. Every thread
// reads its own part of an array, larger than most caches.
double measure_read_rate(std::size_t threads) {
  constexpr std::size_t kWords = std::size_t{1} << 27U;  // 1 GiB
  constexpr std::size_t kLanes = 16;
  const std::size_t share = kWords / threads / kLanes * kLanes;
  std::vector<std::vector<std::uint64_t>> data(threads);
  const auto make = [&](std::size_t one) { data[one].assign(share, 1); };
  const auto read = [&](std::size_t one) {
    std::uint64_t lanes[kLanes] = {};
    const std::uint64_t* words = data[one].data();
    for (std::size_t place = 0; place < share; place += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] |= words[place + lane];
    }
    return *std::max_element(lanes, lanes + kLanes);
  };
  double best = std::numeric_limits<double>::infinity();
  for (int repeat = -1; repeat < 5; ++repeat) {
    const core::Stopwatch watch;
    std::vector<std::thread> pool;
    std::vector<std::uint64_t> found(threads);
    for (std::size_t one = 0; one < threads; ++one) {
      pool.emplace_back([&, one] { repeat < 0 ? make(one) : void(found[one] = read(one)); });
    }
    for (std::thread& one : pool) one.join();
    const bool whole = std::all_of(found.begin(), found.end(), [](auto one) { return one == 1; });
    if (repeat >= 0 && whole) best = std::min(best, watch.seconds());
  }
  return static_cast<double>(share * threads * sizeof(std::uint64_t)) / best;
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return core::one_line(line.substr(line.find(':') + 1));
  }
  return "unknown";
}

nlohmann::ordered_json describe_machine() {
  utsname system{};
  uname(&system);
  return {{"processor", processor()},
          {"cores", available_cores()},
          {"system", std::string(system.sysname) + " " + system.machine},
          {"versions",
           {{"ouroboros-llm", OURO_VERSION},
            {"onnxruntime", core::find_onnxruntime().GetVersionString()}}}};
}

Row make_row(const core::Manifest& manifest, std::int64_t depth, std::int64_t context,
             const std::vector<Timing>& timings, double rate) {
  std::vector<double> tokens, outside, prefills;
  for (const Timing& timing : timings) {
    for (std::size_t one = 0; one < timing.token_s.size(); ++one) {
      tokens.push_back(timing.token_s[one]);
      outside.push_back(1 - timing.inside_s[one] / timing.token_s[one]);
    }
    prefills.push_back(timing.prefill_s);
  }
  const double token_s = median(tokens);
  Row row;
  row.depth = depth;
  row.context = context;
  row.decode_ms = token_s * 1e3;
  row.tokens_per_s = 1 / token_s;
  row.prefill_tokens_per_s = static_cast<double>(context) / median(prefills);
  row.engine_overhead = median(outside);
  row.weight_bytes = manifest.model.step_bytes * depth + manifest.model.once_bytes;
  row.memory_share = static_cast<double>(row.weight_bytes) / rate / token_s;
  return row;
}

// Every depth at every context length, in turn, so that a busy machine spoils all alike.
std::vector<Row> measure(core::Engine& engine, const std::vector<std::int64_t>& depths,
                         const std::vector<std::int64_t>& contexts, std::int64_t tokens,
                         std::int64_t repeats, double rate) {
  time_decode(engine, depths[0], *std::min_element(contexts.begin(), contexts.end()), 4);
  std::vector<std::pair<std::int64_t, std::int64_t>> pairs;
  for (const std::int64_t depth : depths) {
    for (const std::int64_t context : contexts) pairs.emplace_back(depth, context);
  }
  std::vector<std::vector<Timing>> runs(pairs.size());
  for (std::int64_t repeat = 0; repeat < repeats; ++repeat) {
    for (std::size_t one = 0; one < pairs.size(); ++one) {
      runs[one].push_back(time_decode(engine, pairs[one].first, pairs[one].second, tokens));
    }
  }
  std::vector<Row> rows;
  for (std::size_t one = 0; one < pairs.size(); ++one) {
    rows.push_back(
        make_row(engine.manifest(), pairs[one].first, pairs[one].second, runs[one], rate));
  }
  return rows;
}

std::string table_of(const std::vector<Row>& rows) {
  std::vector<std::vector<std::string>> lines;
  for (const Row& row : rows) {
    lines.push_back({std::to_string(row.depth), std::to_string(row.context),
                     format("%.2f", row.decode_ms), format("%.1f", row.tokens_per_s),
                     format("%.0f", row.prefill_tokens_per_s),
                     format("%.2f%%", row.engine_overhead * 100),
                     format("%.0f", static_cast<double>(row.weight_bytes) / 1e6),
                     format("%.0f%%", row.memory_share * 100)});
  }
  return make_table("",
                    {{"depth"},
                     {"context"},
                     {"ms/token"},
                     {"tokens/s"},
                     {"prefill\ntokens/s"},
                     {"overhead"},
                     {"weights\nMB/token"},
                     {"of memory\nspeed"}},
                    lines);
}

nlohmann::ordered_json json_of(const std::vector<Row>& rows, double rate,
                               const nlohmann::ordered_json& machine) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const Row& row : rows) {
    list.push_back({{"depth", row.depth},
                    {"context", row.context},
                    {"decode_ms", row.decode_ms},
                    {"tokens_per_s", row.tokens_per_s},
                    {"prefill_tokens_per_s", row.prefill_tokens_per_s},
                    {"engine_overhead", row.engine_overhead},
                    {"weight_bytes", row.weight_bytes},
                    {"memory_share", row.memory_share}});
  }
  return {{"rows", list}, {"read_bytes_per_s", rate}, {"machine", machine}};
}

// Those of kBenchContexts that a model has positions for, or the longest that it has them for.
std::vector<std::int64_t> fitting_contexts(const core::Manifest& manifest, std::int64_t tokens) {
  const std::int64_t most = manifest.model.max_position_embeddings;
  const std::int64_t longest = std::max<std::int64_t>(1, most - std::min(most, tokens));
  std::vector<std::int64_t> found;
  for (const std::int64_t one : core::kBenchContexts) {
    if (one <= longest) found.push_back(one);
  }
  return found.empty() ? std::vector<std::int64_t>{longest} : found;
}

}  // namespace

Command bench_command() {
  std::string listed;
  for (const std::int64_t one : core::kBenchContexts) {
    listed += (listed.empty() ? "" : ",") + std::to_string(one);
  }
  return {
      "bench",
      "Measure a bundle on this machine: decoding, prefill, overhead, share of memory speed.",
      "ouro-cli bench bundle --depth 1,4,8,16 --context 64,1024 --json bench.json",
      {"bundle"},
      {{"--depth", "list", "such as 1,4,8 or 1-4; default: the bundle's own"},
       {"--context", "list",
        "tokens before the measured ones; default: of " + listed + " what the model holds"},
       {"--tokens", "int", "tokens decoded a run; default: " + std::to_string(core::kBenchTokens)},
       {"--repeats", "int",
        "runs of each; the median counts; default: " + std::to_string(core::kBenchRepeats)},
       {"--threads", "int", "CPU threads; default: every core"},
       {"--backend", "name", "auto, cpu, cuda or trt; default: auto"},
       {"--json", "file", "write the figures to this file"}}};
}

int bench(const Given& given) {
  const auto json = given.text("--json");
  const std::string& bundle = given.arguments()[0];
  if (json) require_writable(*json, bundle);
  const auto threads = given.integer("--threads");
  const auto listed = given.text("--depth");
  std::vector<std::int64_t> depths;
  if (listed) depths = parse_numbers(*listed, "--depth");
  const auto asked = given.text("--context");
  std::vector<std::int64_t> contexts;
  if (asked) contexts = parse_numbers(*asked, "--context");
  const std::int64_t tokens = given.integer("--tokens").value_or(core::kBenchTokens);
  const std::int64_t repeats = given.integer("--repeats").value_or(core::kBenchRepeats);
  if (repeats < 1) {
    throw core::engine_error("repeats=" + std::to_string(repeats) + " is not allowed",
                             "a whole number of 1 or more");
  }
  const auto engine = core::Engine::open(bundle, given.text("--backend").value_or("auto"), threads);
  if (!listed) depths = {engine->manifest().depth.default_depth};
  if (!asked) contexts = fitting_contexts(engine->manifest(), tokens);
  core::Options options;
  options.max_new_tokens = tokens;
  core::check_options(options, engine->manifest().sampling);
  for (const std::int64_t depth : depths) {
    engine->choose_depth({depth, false, std::nullopt});
    for (const std::int64_t context : contexts) engine->check_length(context, tokens);
  }
  const double rate =
      measure_read_rate(threads ? static_cast<std::size_t>(*threads) : available_cores());
  const std::vector<Row> rows = measure(*engine, depths, contexts, tokens, repeats, rate);
  for (const std::string& warning : engine->take_warnings()) {
    std::fprintf(stderr, "warning: %s\n", warning.c_str());
  }
  const auto machine = describe_machine();
  const std::size_t cores = machine["cores"];
  const std::string text =
      bundle +
      format(": batch 1, medians of %lld x %lld tokens\n", static_cast<long long>(repeats),
             static_cast<long long>(tokens)) +
      table_of(rows) + machine["processor"].get<std::string>() +
      format(", %zu core%s, ", cores, cores == 1 ? "" : "s") +
      machine["system"].get<std::string>() +
      format("; memory reads %.1f GB/s; ouroboros-llm %s, onnxruntime %s\n", rate / 1e9,
             OURO_VERSION, core::find_onnxruntime().GetVersionString());
  std::fwrite(text.data(), 1, text.size(), stdout);
  if (json) write_whole(*json, json_of(rows, rate, machine).dump(2) + "\n");
  return 0;
}

}  // namespace ouro::cli
