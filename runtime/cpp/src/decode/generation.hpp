// The loop that turns logits into tokens and text, for one sequence or a batch of them.
// Port of runtime/decode/generation.py.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "decode/decoder.hpp"
#include "decode/options.hpp"
#include "decode/sampling.hpp"
#include "text/codec.hpp"
#include "text/stop_strings.hpp"
#include "text/stream.hpp"
#include "tokens.hpp"

namespace ouro::core {

// One sequence to generate, checked.
struct Request {
  Tokens ids;                   // to feed, at least one
  std::int64_t depth;           // recurrences
  Options options;              // with nothing left open
  Tokens before;                // of the conversation that it goes on with
  double halt_threshold = 0.0;  // above 0 the prompt chooses its depth, at most `depth`
};

// Why a sequence ended; kNone while it goes on.
enum class Finish { kNone, kStop, kLength, kEos, kCancelled };

// One finished sequence.
struct Generation {
  std::string text;  // of the new tokens, up to a stop string
  Tokens tokens;     // the new ones, an end-of-text token included
  std::int64_t prompt_tokens = 0;
  Finish finish = Finish::kCancelled;
  std::vector<TokenLogprob> logprobs;  // of every new token, where they were asked for
  std::int64_t depth = 0;
};

// One token of a stream, and the text that is complete with it.
struct Piece {
  std::string text;
  std::optional<Token> token;  // none in the piece that reports a cancellation
  Finish finish = Finish::kNone;
  std::optional<TokenLogprob> logprob;
  std::int64_t depth = 0;  // recurrences that it was made with
};

// Asked before every token whether to stop.
using Cancelled = std::function<bool()>;

// One sequence being generated. The codec must outlive it.
class Row {
 public:
  Row(const Codec& codec, const Request& request, const Tokens& eos);

  // Chooses the next token from float32 [size] logits and returns it with its text.
  Piece take(const float* logits, std::size_t size);
  // Ends the sequence before its next token.
  Piece cancel();
  // The sequence, once it has ended.
  Generation result() const { return generation_; }
  Finish finish() const { return finish_; }
  Token last_token() const { return generation_.tokens.back(); }
  // The text shown so far.
  const std::string& text() const { return generation_.text; }
  // The text of every token, special tokens and what follows a stop string included.
  std::string spoken() const;
  std::int64_t depth() const { return generation_.depth; }
  void set_depth(std::int64_t depth) { generation_.depth = depth; }

 private:
  std::string scan(const std::string& piece, const std::optional<std::string>& special);
  Piece end(Finish reason, std::optional<Token> token, std::string shown,
            const std::optional<std::string>& special = std::nullopt);

  const Codec& codec_;
  Generation generation_;
  Finish finish_ = Finish::kNone;
  std::string full_;                                           // the settled text of every token
  std::vector<std::pair<std::size_t, std::string>> specials_;  // place in it, what stands there
  Sampler sampler_;
  bool has_stops_;
  TextStream stream_;
  StopScanner scanner_;
  std::set<Token> eos_;
  std::size_t most_;
};

// Feeds what requests ask for and generates until every row has ended. A row that has ended leaves
// the batch while others go on; its last token is not fed. Used from one thread.
class Serving {
 public:
  // A request and a row for each row of the decoder, whose cache holds what each has before, or
  // nothing: that is fed first then, apart from the rest. All three must outlive it.
  Serving(Decoder& decoder, const std::vector<Request>& requests, std::vector<Row>& rows);

  // Generates the next token of every row: a piece a row, none for a row that had ended before.
  // False, and nothing, once all have ended. Throws what the decoder throws.
  bool next(const Cancelled& cancelled, std::vector<std::optional<Piece>>& pieces);

 private:
  void feed();

  Decoder& decoder_;
  const std::vector<Request>& requests_;
  std::vector<Row>& rows_;
  std::vector<std::size_t> fed_;  // which of the rows each one of the batch is
  std::vector<float> first_;      // logits of the prompts
  const float* logits_ = nullptr;
  bool ended_ = false;
};

}  // namespace ouro::core
