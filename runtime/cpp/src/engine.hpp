// The engine: a loaded bundle that answers requests. Port of runtime/engine.py.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "backends/backend.hpp"
#include "bundle/reader.hpp"
#include "decode/decoder.hpp"
#include "decode/generation.hpp"
#include "text/chat.hpp"
#include "text/codec.hpp"
#include "tokens.hpp"

namespace ouro::core {

// A text, token ids, or a conversation for the chat template.
using Prompt = std::variant<std::string, Tokens, std::vector<Message>>;

// Recurrences: the bundle's default, a number, or chosen on the prompt by the bundle's halter.
struct Depth {
  std::optional<std::int64_t> steps;
  bool automatic = false;
  std::optional<double> halt_threshold;  // of `automatic`; none takes the bundle's
};

// What one sequence of a batch is made of.
struct Asked {
  Prompt prompt;
  Depth depth;
  Options options;
};

// A loaded bundle. Safe to use from several threads; every request has a cache of its own. What it
// gives out keeps what it needs: the engine may be closed, or gone, before them.
class Engine : public std::enable_shared_from_this<Engine> {
 public:
  // Verifies a bundle and loads it; `backend` as for choose_backend, the rest for open_backend.
  // Throws bundle_error where it is not whole, engine_error for what can't run here.
  static std::shared_ptr<Engine> open(const std::filesystem::path& path,
                                      const std::string& backend = "auto",
                                      std::optional<std::int64_t> threads = std::nullopt,
                                      std::optional<std::int64_t> accuracy_level = std::nullopt);
  explicit Engine(Bundle bundle) : bundle_(std::move(bundle)), codec_(bundle_) {}

  // Frees the graph once the requests in progress have ended. No request is answered after this.
  void close();
  const Manifest& manifest() const { return bundle_.manifest(); }
  const Codec& codec() const { return codec_; }
  // "cpu", "cuda" or "trt", and why it was taken.
  const std::string& backend_name() const { return backend_name_; }
  const std::string& reason() const { return reason_; }

  // Token ids of a text, a begin-of-text token included where the model wants one.
  Tokens tokenize(const std::string& text) const { return codec_.encode(text); }
  // The text of token ids, special tokens left out.
  std::string detokenize(const Tokens& ids) const;
  // Generates from prompts that advance together; a result each.
  std::vector<Generation> generate(const std::vector<Asked>& asked,
                                   const Cancelled& cancelled = {});
  // Logits of every position of a prompt, float32 [tokens, V].
  std::vector<float> logits(const Prompt& prompt, const Depth& depth);
  // Warnings since the last call, such as of a depth that was never trained.
  std::vector<std::string> take_warnings();

  // The lower-level way in, which generate and sessions are built on.
  struct ChosenDepth {
    std::int64_t steps;  // the most that may be chosen, where there is a threshold
    double threshold;    // 0 where the depth is fixed
  };
  ChosenDepth choose_depth(const Depth& depth) const;
  // Above 0 of `halt_threshold` the rows choose theirs, told to warn_untrained once fed.
  std::unique_ptr<Decoder> new_decoder(const std::vector<std::int64_t>& row_depth,
                                       double halt_threshold = 0.0);
  // Warns of depths that were never trained, of each once.
  void warn_untrained(const std::vector<std::int64_t>& depths);
  Request new_request(Tokens ids, std::int64_t depth, const Options& options,
                      Tokens before = {}) const;
  Row new_row(const Request& request) const;
  // Token ids of a text or of ids, checked; `first` where they begin a sequence.
  Tokens encode_prompt(const Prompt& prompt, bool first = true) const;
  // The conversation as the bundle's template writes it.
  std::string render(const std::vector<Message>& messages) const;
  void check_length(std::int64_t prompt, std::int64_t fresh) const;

 private:
  std::shared_ptr<Backend> require_open() const;
  std::int64_t fixed_depth(const Depth& depth) const;

  Bundle bundle_;
  Codec codec_;
  std::string backend_name_, reason_;
  mutable std::mutex mutex_;
  std::shared_ptr<Backend> backend_;
  std::set<std::int64_t> warned_;
  std::vector<std::string> warnings_;
};

}  // namespace ouro::core
