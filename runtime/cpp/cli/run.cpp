// `ouro-cli run`: generate text with a bundle.

#include <cstdio>
#include <memory>

#include "commands.hpp"
#include "defaults.hpp"
#include "engine.hpp"
#include "error.hpp"
#include "session.hpp"

namespace ouro::cli {
namespace {

core::Depth read_depth(const Given& given) {
  core::Depth depth;
  depth.halt_threshold = given.number("--halt-threshold");
  const auto text = given.text("--depth");
  if (!text) return depth;
  depth.automatic = *text == "auto";
  if (depth.automatic) return depth;
  try {
    depth.steps = given.integer("--depth");
  } catch (const UsageError&) {
    throw core::Error(core::Code::kCommand, "--depth '" + *text + "' is no depth",
                      "give a number, or auto");
  }
  return depth;
}

core::Options read_options(const Given& given) {
  core::Options options;
  options.max_new_tokens = given.integer("--max-new-tokens").value_or(options.max_new_tokens);
  options.temperature = given.number("--temperature");
  options.top_k = given.integer("--top-k");
  options.top_p = given.number("--top-p");
  options.min_p = given.number("--min-p");
  options.repetition_penalty = given.number("--repetition-penalty");
  options.seed = given.natural("--seed");
  options.stop = given.all("--stop");
  return options;
}

}  // namespace

Command run_command() {
  return {"run",
          "Generate text with a bundle; it appears as it is made.",
          "ouro-cli run bundle \"The sea is\" --depth 8",
          {"bundle", "prompt"},
          {{"--max-new-tokens", "int",
            "tokens to generate at most; default: " + std::to_string(core::kMaxNewTokens)},
           {"--temperature", "float", "0 takes the most likely token; default: the bundle's"},
           {"--top-k", "int", "keep the k most likely tokens; 0 keeps all; default: the bundle's"},
           {"--top-p", "float",
            "keep the most likely tokens that reach this probability; default: the bundle's"},
           {"--min-p", "float",
            "keep tokens this likely or more, as a share of the likeliest; default: the bundle's"},
           {"--repetition-penalty", "float",
            "above 1 makes tokens that were there less likely; 1: none; default: the bundle's"},
           {"--seed", "int", "makes sampling repeatable; default: another one every time"},
           {"--stop", "text", "text to stop before; may be given several times"},
           {"--depth", "N|auto",
            "recurrences, or auto: chosen on the prompt; default: the bundle's own"},
           {"--halt-threshold", "float",
            "of --depth auto, at most 1: the lower, the fewer steps; default: the bundle's"},
           {"--chat", nullptr, "apply the chat template"},
           {"--threads", "int", "CPU threads; default: every core"},
           {"--backend", "name", "auto, cpu, cuda or trt; default: auto"}}};
}

int run(const Given& given) {
  const core::Depth depth = read_depth(given);
  const core::Options options = read_options(given);
  const std::string& text = given.arguments()[1];
  core::Prompt prompt = text;
  if (given.has("--chat")) prompt = std::vector<core::Message>{{"user", text}};
  const auto engine = core::Engine::open(
      given.arguments()[0], given.text("--backend").value_or("auto"), given.integer("--threads"));
  const auto session = std::make_shared<core::Session>(engine, depth);
  const auto stream = session->stream(prompt, options);
  const auto tell = [&engine] {
    for (const std::string& warning : engine->take_warnings()) {
      std::fprintf(stderr, "warning: %s\n", warning.c_str());
    }
  };
  tell();
  for (core::Piece piece; stream->next(piece);) {
    tell();  // a depth is chosen with the first piece
    std::fwrite(piece.text.data(), 1, piece.text.size(), stdout);
    std::fflush(stdout);
  }
  std::puts("");
  if (depth.automatic) {
    std::fflush(stdout);
    std::fprintf(stderr, "depth %lld, chosen on the prompt\n",
                 static_cast<long long>(session->depth()));
  }
  return 0;
}

}  // namespace ouro::cli
