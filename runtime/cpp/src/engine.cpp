#include "engine.hpp"

#include <algorithm>
#include <utility>

#include "bundle/json.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

std::string show(std::int64_t number) { return std::to_string(number); }

void check_id(Token token, std::int64_t vocabulary) {
  if (token < 0 || token >= vocabulary) {
    throw engine_error(
        "token id " + show(token) + " is outside the vocabulary 0.." + show(vocabulary - 1),
        "give ids of the bundle's own tokenizer");
  }
}

}  // namespace

std::shared_ptr<Engine> Engine::open(const std::filesystem::path& path, const std::string& backend,
                                     std::optional<std::int64_t> threads,
                                     std::optional<std::int64_t> accuracy_level) {
  check_choice(backend, threads, accuracy_level);
  Choice choice;
  auto engine = std::make_shared<Engine>(open_bundle(path, [&](const Manifest& manifest) {
    choice = choose_backend(manifest, backend);  // hashing takes long where the weights are large
  }));
  engine->backend_ = open_backend(engine->bundle_, choice, threads, accuracy_level);
  engine->backend_name_ = std::move(choice.backend);
  engine->reason_ = std::move(choice.reason);
  if (!engine->codec_.decodes()) {
    try {
      engine->codec_.decode({});
    } catch (const Error& error) {
      engine->warnings_.push_back(error.what() + std::string("; answers have ids and no text"));
    }
  }
  return engine;
}

void Engine::close() {
  std::shared_ptr<Backend> freed;  // outside the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  freed.swap(backend_);
}

std::string Engine::detokenize(const Tokens& ids) const {
  for (const Token token : ids) check_id(token, manifest().model.vocab_size);
  return codec_.decode(ids);
}

std::vector<Generation> Engine::generate(const std::vector<Asked>& asked,
                                         const Cancelled& cancelled) {
  if (asked.empty()) throw engine_error("empty prompt", "give at least one token");
  std::vector<Tokens> prompts;
  for (const Asked& one : asked) prompts.push_back(encode_prompt(one.prompt));
  std::vector<std::int64_t> depths;
  double threshold = 0.0;
  for (std::size_t row = 0; row < asked.size(); ++row) {
    const ChosenDepth depth = choose_depth(asked[row].depth);
    if (row > 0 && depth.threshold != threshold) {
      throw engine_error(
          "depth=\"auto\" is for prompts to generate from, and for all of a batch alike",
          "allowed here: " + show(manifest().depth.min) + ".." + show(manifest().depth.max));
    }
    depths.push_back(depth.steps);
    threshold = depth.threshold;
  }
  // As in Python every prompt is read first, then every depth: of two faults the same one is told.
  std::vector<Request> requests;
  for (std::size_t row = 0; row < asked.size(); ++row) {
    requests.push_back(new_request(std::move(prompts[row]), depths[row], asked[row].options));
    requests.back().halt_threshold = threshold;
  }
  const auto decoder = new_decoder(depths, threshold);
  std::vector<Row> rows;
  for (const Request& request : requests) rows.push_back(new_row(request));
  Serving serving(*decoder, requests, rows);
  std::vector<std::optional<Piece>> pieces;
  while (serving.next(cancelled, pieces)) {
  }
  std::vector<Generation> results;
  std::vector<std::int64_t> chosen;
  for (const Row& row : rows) {
    results.push_back(row.result());
    chosen.push_back(row.depth());
  }
  if (threshold > 0.0) warn_untrained(chosen);
  return results;
}

std::vector<float> Engine::logits(const Prompt& prompt, const Depth& depth) {
  const Tokens row = encode_prompt(prompt);
  check_length(static_cast<std::int64_t>(row.size()), 0);
  const auto decoder = new_decoder({fixed_depth(depth)});
  const auto width = static_cast<std::size_t>(manifest().model.vocab_size);
  std::vector<float> result;
  result.reserve(row.size() * width);
  decoder->score(row, [&](std::int64_t tokens, const float* found) {
    result.insert(result.end(), found, found + static_cast<std::size_t>(tokens) * width);
  });
  return result;
}

std::vector<std::string> Engine::take_warnings() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(warnings_, {});
}

Engine::ChosenDepth Engine::choose_depth(const Depth& depth) const {
  if (!depth.automatic) {
    if (depth.halt_threshold) {
      throw engine_error(
          "halt_threshold=" + repr(*depth.halt_threshold) + " has no effect at a fixed depth",
          "give depth=\"auto\" with it, or leave it out");
    }
    return {fixed_depth(depth), 0.0};
  }
  const DepthSpec& spec = manifest().depth;
  if (!spec.halting) {
    throw engine_error(
        "this bundle has no halter, so depth=\"auto\" can't choose",
        "give a depth of " + show(spec.min) + ".." + show(spec.max) +
            ", or put a halter into its checkpoint with `ouro halter` and export that");
  }
  const double threshold = depth.halt_threshold.value_or(spec.halting->threshold);
  if (!(threshold > 0.0 && threshold <= 1.0)) {
    throw engine_error("halt_threshold=" + repr(threshold) + " is not allowed",
                       "above 0 and at most 1: the lower, the fewer steps");
  }
  return {spec.halting->max, threshold};
}

std::int64_t Engine::fixed_depth(const Depth& depth) const {
  const DepthSpec& spec = manifest().depth;
  if (depth.automatic) {
    throw engine_error(
        "depth=\"auto\" is for prompts to generate from, and for all of a batch alike",
        "allowed here: " + show(spec.min) + ".." + show(spec.max));
  }
  const std::int64_t steps = depth.steps.value_or(spec.default_depth);
  if (steps < spec.min || steps > spec.max) {
    throw engine_error(
        "depth=" + show(steps) + " is outside this bundle's range " + show(spec.min) + ".." +
            show(spec.max),
        steps > spec.max ? "re-export with --max-depth " + show(steps) : "give one in it");
  }
  return steps;
}

std::unique_ptr<Decoder> Engine::new_decoder(const std::vector<std::int64_t>& row_depth,
                                             double halt_threshold) {
  std::shared_ptr<Backend> backend = require_open();
  const std::int64_t most = backend->limits().max_batch;
  const auto rows = static_cast<std::int64_t>(row_depth.size());
  if (most > 0 && rows > most) {
    throw engine_error(
        show(rows) + " sequences at once, this bundle's plan takes up to " + show(most),
        "give fewer at a time, or export again with --max-batch " + show(rows));
  }
  if (halt_threshold == 0.0) warn_untrained(row_depth);
  return std::make_unique<Decoder>(std::move(backend), manifest(), row_depth);
}

Request Engine::new_request(Tokens ids, std::int64_t depth, const Options& options,
                            Tokens before) const {
  Options chosen = check_options(options, manifest().sampling);
  check_length(static_cast<std::int64_t>(before.size() + ids.size()), chosen.max_new_tokens);
  // Of a decoder that is not read there is no text to look for them in: the error names its part.
  if (!chosen.stop.empty() && !codec_.decodes()) codec_.decode({});
  return {std::move(ids), depth, std::move(chosen), std::move(before), 0.0};
}

Row Engine::new_row(const Request& request) const {
  return Row(codec_, request, manifest().tokenizer.eos_token_ids);
}

Tokens Engine::encode_prompt(const Prompt& prompt, bool first) const {
  Tokens ids;
  if (const auto* text = std::get_if<std::string>(&prompt)) {
    if (!text->empty()) ids = codec_.encode(*text, first);
  } else if (const auto* given = std::get_if<Tokens>(&prompt)) {
    ids = *given;
  } else {
    // A template writes the begin-of-text token itself.
    ids = codec_.encode(render(std::get<std::vector<Message>>(prompt)), false);
  }
  if (ids.empty()) throw engine_error("empty prompt", "give at least one token");
  // The tokenizer may know added tokens that the model has no row for.
  for (const Token token : ids) check_id(token, manifest().model.vocab_size);
  return ids;
}

std::string Engine::render(const std::vector<Message>& messages) const {
  return ChatTemplate(bundle_).render(messages);
}

void Engine::check_length(std::int64_t prompt, std::int64_t fresh) const {
  const std::int64_t positions = manifest().model.max_position_embeddings;
  const std::int64_t most = std::min(positions, require_open()->limits().max_slots);
  std::string whose = "the model's " + show(positions) + " positions", cure;
  if (most < positions) {
    whose = "the " + show(most) + " that this bundle's plan holds (the model has " +
            show(positions) + " positions)";
    cure = ", or export again with a larger --max-seq";
  }
  if (prompt > most) {
    throw engine_error("a prompt of " + show(prompt) + " tokens is longer than " + whose,
                       "shorten it" + cure);
  }
  if (fresh > most - prompt) {
    const std::string left = "allowed here: max_new_tokens up to " + show(most - prompt);
    throw engine_error(
        show(prompt) + " tokens and max_new_tokens=" + show(fresh) + " pass " + whose,
        (prompt < most ? left : "shorten the prompt") + cure);
  }
}

std::shared_ptr<Backend> Engine::require_open() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!backend_) throw engine_error("the engine is closed", "open it again with Engine.open");
  return backend_;
}

void Engine::warn_untrained(const std::vector<std::int64_t>& depths) {
  const std::vector<std::int64_t>& trained = manifest().depth.trained;
  const std::lock_guard<std::mutex> lock(mutex_);
  std::set<std::int64_t> fresh;
  for (const std::int64_t depth : depths) {
    const bool known = std::find(trained.begin(), trained.end(), depth) != trained.end();
    if (!known && warned_.count(depth) == 0) fresh.insert(depth);
  }
  if (fresh.empty() || (trained.empty() && !warned_.empty())) return;
  warned_.insert(fresh.begin(), fresh.end());
  if (trained.empty()) {
    warnings_.emplace_back(
        "this model was never trained; expect poor text, or run `ouro train` first");
  } else {
    warnings_.push_back("depth " + list_numbers({fresh.begin(), fresh.end()}) +
                        " was never trained (trained: " + list_numbers(trained) +
                        "); expect poorer text");
  }
}

}  // namespace ouro::core
