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
  std::int64_t max_new_tokens = OURO_MAX_NEW_TOKENS_DEFAULT; /**< the sequence ends after so many */
  std::optional<double> temperature;                         /**< 0 takes the most likely token */
  std::optional<std::int64_t> top_k; /**< keeps so many of the most likely; 0 keeps all */
  std::optional<double> top_p;       /**< keeps the likeliest that make up this probability */
  std::optional<double> min_p;       /**< keeps tokens of this share of the best one's */
  std::optional<double> repetition_penalty; /**< of tokens that stand before; 1: none */
  std::optional<std::uint64_t> seed;        /**< not set: the system draws one */
  std::optional<std::int64_t> logprobs;     /**< of so many of the best beside the chosen token */
  std::vector<std::string> stop;            /**< texts to stop before */
};

/** Recurrences: a number, the bundle's default, or chosen on the prompt. */
struct Depth {
  std::int64_t steps = OURO_DEPTH_DEFAULT; /**< 1 and more, or an OURO_DEPTH_* */
  double halt_threshold = 0;               /**< of `automatic`; 0 takes the bundle's */

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
  Prompt prompt;   /**< what to go on from */
  Depth depth;     /**< recurrences */
  Options options; /**< how tokens are chosen, and when it ends */
};

/** What the model gave a chosen token, and the most likely ones with their logarithms. */
struct Logprob {
  std::int64_t token = 0;                            /**< the chosen one's id */
  double logprob = 0;                                /**< natural logarithm of its probability */
  std::vector<std::pair<std::int64_t, double>> best; /**< ids and logarithms, the likeliest first */
};

/** One finished sequence. */
struct Generation {
  std::string text;               /**< of the new tokens, up to a stop string */
  Ids ids;                        /**< the new tokens, an end-of-text token included */
  std::int64_t prompt_tokens = 0; /**< tokens before the first new one */
  std::int64_t depth = 0;         /**< recurrences that it was made with */
  Finish finish = Finish::kNone;  /**< why it ended */
  std::vector<Logprob> logprobs;  /**< of every new token, where asked for */
};

/** One token of a stream, and the text that is complete with it. */
struct Piece {
  std::string text;                  /**< often a word, sometimes empty */
  std::optional<std::int64_t> token; /**< none in the piece that reports a cancellation */
  Finish finish = Finish::kNone;     /**< kNone until the last piece */
  std::optional<Logprob> logprob;    /**< where asked for */
  std::int64_t depth = 0;            /**< recurrences that it was made with */
};

/** Logits of a prompt, row by row. */
struct Logits {
  std::size_t rows = 0;      /**< tokens of the prompt */
  std::size_t columns = 0;   /**< tokens of the vocabulary */
  std::vector<float> values; /**< rows * columns of them */
};

/** What a bundle is and what runs it. */
struct Info {
  std::int64_t min_depth = 0;     /**< the least depth, in recurrences */
  std::int64_t max_depth = 0;     /**< the greatest */
  std::int64_t default_depth = 0; /**< where a request names none */
  std::int64_t vocab_size = 0;    /**< logits a token */
  std::int64_t hidden_size = 0;   /**< numbers of a hidden state */
  std::int64_t max_positions = 0; /**< tokens of a sequence, prompt included */
  bool can_choose_depth = false;  /**< whether Depth::automatic works */
  bool can_chat = false;          /**< whether the chat template is there and compiled */
  std::string backend;            /**< "cpu", "cuda" or "trt" */
  std::string reason;             /**< why it was taken */
  std::string precision;          /**< of the weights: "fp32", "fp16", "bf16", "int8" or "int4" */
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
