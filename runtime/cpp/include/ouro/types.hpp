/**
 * @file types.hpp
 * @brief The values of ouro.hpp.
 */
#ifndef OURO_TYPES_HPP
#define OURO_TYPES_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "ouro/ouro.h"

namespace ouro {

/** Token ids. */
using Ids = std::vector<std::int64_t>;

/** A call that failed: what was given and is allowed, and what to do next. */
class Error : public std::exception {
 public:
  /** Takes the error over. */
  Error(ouro_status status, ouro_error* error) : status_(status), code_(ouro_error_code(error)) {
    const std::unique_ptr<ouro_error, void (*)(ouro_error*)> owner(error, ouro_error_release);
    problem_ = ouro_error_problem(error);
    cure_ = ouro_error_cure(error);
    message_ = error == nullptr ? "out of memory" : ouro_error_message(error);
  }
  /** Problem and cure on one line. */
  const char* what() const noexcept override { return message_.c_str(); }
  /** What became of the call. */
  ouro_status status() const noexcept { return status_; }
  /** The kind of error. */
  ouro_code code() const noexcept { return code_; }
  /** What was given, and what is allowed. */
  const std::string& problem() const noexcept { return problem_; }
  /** What to do next; may be empty. */
  const std::string& cure() const noexcept { return cure_; }

 private:
  ouro_status status_;
  ouro_code code_;
  std::string problem_, cure_, message_;
};

/** Why a sequence ended. */
enum class Finish {
  kNone = OURO_FINISH_NONE, /**< it goes on */
  kStop = OURO_FINISH_STOP,
  kLength = OURO_FINISH_LENGTH,
  kEos = OURO_FINISH_EOS,
  kCancelled = OURO_FINISH_CANCELLED
};

/** One message of a chat. */
struct Message {
  std::string role;    /**< such as "system", "user" or "assistant" */
  std::string content; /**< UTF-8 */
};

/** What to generate from: a text, token ids, or a chat. */
using Prompt = std::variant<std::string, Ids, std::vector<Message>>;

/** How a sequence is generated; what is not set takes the bundle's defaults. See ouro_options. */
struct Options {
  std::int64_t max_new_tokens = 64;
  std::optional<double> temperature;
  std::optional<std::int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<std::uint64_t> seed;
  std::optional<std::int64_t> logprobs;
  std::vector<std::string> stop;
};

/** Recurrences: a number, the bundle's default, or chosen on the prompt. */
struct Depth {
  std::int64_t steps = OURO_DEPTH_DEFAULT;
  double halt_threshold = 0; /**< of `automatic`; 0 takes the bundle's */

  Depth() = default;
  /** A fixed depth. */
  Depth(std::int64_t number) : steps(number) {}  // NOLINT: a number is a depth
  /** Chosen by the bundle's halter on the prompt. */
  static Depth automatic(double threshold = 0) {
    Depth depth(OURO_DEPTH_AUTO);
    depth.halt_threshold = threshold;
    return depth;
  }
};

/** One sequence to generate. */
struct Request {
  Prompt prompt;
  Depth depth;
  Options options;
};

/** What the model gave a chosen token, and the most likely ones with their logarithms. */
struct Logprob {
  std::int64_t token = 0;
  double logprob = 0;
  std::vector<std::pair<std::int64_t, double>> best;
};

/** One finished sequence. */
struct Generation {
  std::string text; /**< of the new tokens, up to a stop string */
  Ids ids;          /**< the new tokens, an end-of-text token included */
  std::int64_t prompt_tokens = 0;
  std::int64_t depth = 0;
  Finish finish = Finish::kNone;
  std::vector<Logprob> logprobs; /**< of every new token, where asked for */
};

/** One token of a stream, and the text that is complete with it. */
struct Piece {
  std::string text;
  std::optional<std::int64_t> token; /**< none in the piece that reports a cancellation */
  Finish finish = Finish::kNone;
  std::optional<Logprob> logprob;
};

/** Logits of a prompt, row by row. */
struct Logits {
  std::size_t rows = 0;    /**< tokens of the prompt */
  std::size_t columns = 0; /**< tokens of the vocabulary */
  std::vector<float> values;
};

/** What a bundle is and what runs it. */
struct Info {
  std::int64_t min_depth = 0, max_depth = 0, default_depth = 0;
  std::int64_t vocab_size = 0, hidden_size = 0, max_positions = 0;
  bool can_choose_depth = false, can_chat = false;
  std::string backend; /**< "cpu", "cuda" or "trt" */
  std::string reason;  /**< why it was taken */
  std::string precision;
};

/** How a bundle is opened. */
struct OpenOptions {
  std::string backend = "auto";    /**< "auto", "cpu", "cuda" or "trt" */
  std::int64_t threads = 0;        /**< inside an operator; 0: every core */
  std::int64_t accuracy_level = 0; /**< of int8 and int4 weights on the CPU; 0: the bundle's */
};

/** Asked before every token; true ends the generation. What it throws comes out of the call. */
using Cancelled = std::function<bool()>;

}  // namespace ouro

#endif
