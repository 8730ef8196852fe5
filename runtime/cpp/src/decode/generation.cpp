#include "decode/generation.hpp"

#include <algorithm>
#include <utility>

namespace ouro::core {
namespace {

Tokens prompt_of(const Request& request) {
  Tokens prompt = request.before;
  prompt.insert(prompt.end(), request.ids.begin(), request.ids.end());
  return prompt;
}

}  // namespace

Row::Row(const Codec& codec, const Request& request, const Tokens& eos)
    : codec_(codec),
      sampler_(request.options, prompt_of(request)),
      has_stops_(!request.options.stop.empty()),
      stream_(codec, prompt_of(request)),  // the text of new tokens needs those before them
      scanner_(request.options.stop),
      eos_(eos.begin(), eos.end()),
      most_(static_cast<std::size_t>(request.options.max_new_tokens)) {
  generation_.prompt_tokens = static_cast<std::int64_t>(request.before.size() + request.ids.size());
  generation_.depth = request.depth;
}

std::string Row::spoken() const { return write_specials(full_ + stream_.pending(), specials_); }

Piece Row::take(const float* logits, std::size_t size) {
  const Token token = sampler_.choose(logits, size);
  generation_.tokens.push_back(token);
  std::optional<TokenLogprob> logprob = sampler_.describe(logits, size, token);
  if (logprob) generation_.logprobs.push_back(*logprob);
  const std::optional<std::string> special = codec_.special(token);
  if (eos_.count(token) > 0) return end(Finish::kEos, token, "", special);
  std::string shown = scan(stream_.push(token), special);
  if (scanner_.found()) {
    generation_.finish = finish_ = Finish::kStop;
  } else if (generation_.tokens.size() >= most_) {
    return end(Finish::kLength, token, std::move(shown));
  }
  generation_.text += shown;
  return {std::move(shown), token, finish_, std::move(logprob), depth()};
}

Piece Row::cancel() { return end(Finish::kCancelled, std::nullopt, ""); }

// What may be shown after a piece of text and a special token, if there is one.
std::string Row::scan(const std::string& piece, const std::optional<std::string>& special) {
  full_ += piece;
  // What is pending may take decoding everything: only where it is needed.
  if (!special && !has_stops_) return piece;
  const std::string pending = stream_.pending();
  if (special) specials_.emplace_back(full_.size() + pending.size(), *special);
  return scanner_.push(piece, pending, special);
}

// Ends the sequence with the text still held back, which may complete a stop string.
Piece Row::end(Finish reason, std::optional<Token> token, std::string shown,
               const std::optional<std::string>& special) {
  shown += scan(stream_.flush(), special);
  if (scanner_.found()) {
    reason = Finish::kStop;
  } else {
    shown += scanner_.flush();
  }
  generation_.finish = finish_ = reason;
  generation_.text += shown;
  Piece piece{std::move(shown), token, reason, std::nullopt, depth()};
  if (token && !generation_.logprobs.empty()) piece.logprob = generation_.logprobs.back();
  return piece;
}

Serving::Serving(Decoder& decoder, const std::vector<Request>& requests, std::vector<Row>& rows)
    : decoder_(decoder), requests_(requests), rows_(rows) {}

bool Serving::next(const Cancelled& cancelled, std::vector<std::optional<Piece>>& pieces) {
  pieces.assign(rows_.size(), std::nullopt);
  if (ended_) return false;
  feed();
  if (cancelled && cancelled()) {
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      if (rows_[row].finish() == Finish::kNone) pieces[row] = rows_[row].cancel();
    }
    ended_ = true;
    return true;
  }
  const std::size_t vocabulary = first_.empty() ? 0 : first_.size() / rows_.size();
  for (std::size_t place = 0; place < fed_.size(); ++place) {
    pieces[fed_[place]] = rows_[fed_[place]].take(logits_ + place * vocabulary, vocabulary);
  }
  ended_ = std::all_of(rows_.begin(), rows_.end(),
                       [](const Row& row) { return row.finish() != Finish::kNone; });
  return true;
}

// Feeds the prompts, or the tokens chosen last by the rows that go on.
void Serving::feed() {
  if (logits_ == nullptr) {
    std::vector<Tokens> before, ids;
    double threshold = 0.0;
    bool behind = decoder_.cache().longest() == 0;
    for (const Request& request : requests_) {
      before.push_back(request.before);
      ids.push_back(request.ids);
      threshold = std::max(threshold, request.halt_threshold);
      behind = behind && !request.before.empty();
    }
    if (behind) decoder_.prefill(before);
    first_ = decoder_.prefill(ids, threshold);
    logits_ = first_.data();
    for (std::size_t row = 0; row < rows_.size(); ++row) {
      rows_[row].set_depth(decoder_.row_depth()[row]);
      fed_.push_back(row);
    }
    return;
  }
  for (std::size_t place = fed_.size(); place-- > 0;) {
    if (rows_[fed_[place]].finish() == Finish::kNone) continue;
    decoder_.evict(static_cast<std::int64_t>(place));
    fed_[place] = fed_.back();  // as the batch does
    fed_.pop_back();
  }
  Tokens tokens;
  for (const std::size_t row : fed_) tokens.push_back(rows_[row].last_token());
  logits_ = decoder_.step(tokens);
}

}  // namespace ouro::core
