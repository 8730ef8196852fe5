#include "session.hpp"

#include <algorithm>
#include <utility>

#include "error.hpp"

namespace ouro::core {
namespace {

Tokens join(const Tokens& first, const Tokens& second) {
  Tokens all = first;
  all.insert(all.end(), second.begin(), second.end());
  return all;
}

}  // namespace

Stream::Stream(std::shared_ptr<Session> session, Prompt prompt, Options options,
               Cancelled cancelled)
    : session_(std::move(session)),
      prompt_(std::move(prompt)),
      options_(std::move(options)),
      asked_(std::move(cancelled)) {}

Stream::~Stream() {
  if (speaking_) end();
}

std::int64_t Stream::depth() const { return session_->depth(); }

bool Stream::next(Piece& piece) {
  const std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
  if (!lock.owns_lock()) {
    throw engine_error("a stream serves one thread at a time", "open another stream");
  }
  if (ended_) return false;
  if (!speaking_) begin();
  std::vector<std::optional<Piece>> pieces;
  const auto cancelled = [this] { return cancelled_.load() || (asked_ && asked_()); };
  try {
    if (!serving_->next(cancelled, pieces)) {
      end();
      return false;
    }
  } catch (...) {
    ended_ = true;
    speaking_ = false;
    const std::lock_guard<std::mutex> guard(session_->mutex_);
    session_->busy_ = false;
    session_->start_over();  // tokens and cache may differ now
    throw;
  }
  piece = std::move(*pieces[0]);
  {
    const std::lock_guard<std::mutex> guard(session_->mutex_);
    session_->depth_ = rows_[0].depth();
    session_->chosen_ = true;
    if (piece.token) session_->tokens_.push_back(*piece.token);
  }
  if (piece.finish != Finish::kNone) end();
  return true;
}

// Takes the session for this answer.
void Stream::begin() {
  Session& session = *session_;
  const std::lock_guard<std::mutex> guard(session.mutex_);
  if (session.busy_) {
    throw engine_error("a session serves one request at a time", "open another session");
  }
  if (turn_->version != session.version_) turn_ = session.read(prompt_, options_);
  // All that may fail first: the conversation is then unchanged.
  const bool anew = turn_->restart || !session.decoder_;
  std::unique_ptr<Decoder> made;
  if (anew) made = session.engine_->new_decoder({session.depth_});
  Decoder& decoder = anew ? *made : *session.decoder_;
  // The last token of an answer has not been fed: it comes first now.
  const auto held = static_cast<std::ptrdiff_t>(decoder.cache().lengths()[0]);
  Request fed = turn_->request;
  const Tokens whole = join(fed.before, fed.ids);
  fed.ids.assign(whole.begin() + held, whole.end());
  fed.before.assign(whole.begin(), whole.begin() + held);
  fed.halt_threshold = session.chosen_ ? 0.0 : session.halt_threshold_;
  std::vector<Message> messages = turn_->messages;
  std::string text = turn_->text;
  Tokens tokens = join(turn_->restart ? Tokens{} : session.tokens_, turn_->request.ids);
  rows_.clear();
  rows_.push_back(session.engine_->new_row(fed));
  requests_.clear();
  requests_.push_back(std::move(fed));
  serving_ = std::make_unique<Serving>(decoder, requests_, rows_);
  if (anew) session.decoder_ = std::move(made);
  session.messages_.swap(messages);
  session.text_.swap(text);
  session.tokens_.swap(tokens);
  ++session.version_;
  session.busy_ = speaking_ = true;
}

void Stream::end() noexcept {
  ended_ = true;
  speaking_ = false;
  try {
    const std::lock_guard<std::mutex> guard(session_->mutex_);
    session_->busy_ = false;
    ++session_->version_;
    if (!session_->messages_.empty()) {
      session_->messages_.push_back({"assistant", rows_[0].text()});
      session_->text_ += rows_[0].spoken();
    }
  } catch (...) {
    // Out of memory: the chat goes on without this answer, which the next turn then renders anew.
  }
}

Session::Session(std::shared_ptr<Engine> engine, const Depth& depth) : engine_(std::move(engine)) {
  const Engine::ChosenDepth chosen = engine_->choose_depth(depth);
  most_ = depth_ = chosen.steps;
  halt_threshold_ = chosen.threshold;
  chosen_ = halt_threshold_ == 0.0;
}

std::unique_ptr<Stream> Session::stream(Prompt prompt, const Options& options,
                                        Cancelled cancelled) {
  auto stream = std::make_unique<Stream>(shared_from_this(), std::move(prompt), options,
                                         std::move(cancelled));
  const std::lock_guard<std::mutex> guard(mutex_);
  stream->turn_ = read(stream->prompt_, options);
  if (!busy_ && !decoder_) decoder_ = engine_->new_decoder({depth_});
  return stream;
}

Generation Session::generate(Prompt prompt, const Options& options, Cancelled cancelled) {
  const auto answer = stream(std::move(prompt), options, std::move(cancelled));
  Generation result;
  Piece piece;
  while (answer->next(piece)) {
    result.text += piece.text;
    if (piece.token) result.tokens.push_back(*piece.token);
    if (piece.logprob) result.logprobs.push_back(*piece.logprob);
    result.finish = piece.finish;
  }
  result.depth = depth();
  result.prompt_tokens = static_cast<std::int64_t>(tokens().size() - result.tokens.size());
  return result;
}

void Session::reset() {
  const std::lock_guard<std::mutex> guard(mutex_);
  if (busy_) {
    throw engine_error("a session can't be reset while it answers", "end its stream first");
  }
  start_over();
}

std::int64_t Session::depth() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return depth_;
}

Tokens Session::tokens() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return tokens_;
}

// Forgets the conversation, and a depth that it has chosen.
void Session::start_over() noexcept {
  depth_ = most_;
  chosen_ = halt_threshold_ == 0.0;
  ++version_;
  tokens_.clear();
  decoder_.reset();
  messages_.clear();
  text_.clear();
}

// What a prompt adds to the conversation as it is now.
Stream::Turn Session::read(const Prompt& prompt, const Options& options) const {
  Stream::Turn turn;
  Tokens ids;
  if (const auto* added = std::get_if<std::vector<Message>>(&prompt)) {
    turn.messages = messages_;
    turn.messages.insert(turn.messages.end(), added->begin(), added->end());
    turn.text = engine_->render(turn.messages);
    ids = continue_chat(turn.text, turn.restart);
  } else {
    ids = continue_plain(prompt);
  }
  turn.version = version_;
  turn.request =
      engine_->new_request(std::move(ids), depth_, options, turn.restart ? Tokens{} : tokens_);
  return turn;
}

// Tokens to feed for a prompt that is no chat.
Tokens Session::continue_plain(const Prompt& prompt) const {
  const auto* text = std::get_if<std::string>(&prompt);
  if (!tokens_.empty() && text != nullptr && !text->empty()) {
    return engine_->encode_prompt(engine_->codec().encode_after(tokens_, *text));
  }
  return engine_->encode_prompt(prompt, tokens_.empty());
}

// Tokens to feed so that the cache holds a rendered chat, and whether to start over. The cache is
// kept where the chat goes on exactly as it was answered, also where the model has put its answer
// into other tokens than the tokenizer would. A template that rewrites earlier turns, or an answer
// cut inside a text that the chat does not repeat, starts over.
Tokens Session::continue_chat(const std::string& text, bool& restart) const {
  const Codec& codec = engine_->codec();
  const Tokens whole = codec.encode(text, false);
  const auto held = static_cast<std::ptrdiff_t>(tokens_.size());
  restart = false;
  if (held > 0 && tokens_.size() < whole.size() &&
      std::equal(tokens_.begin(), tokens_.end(), whole.begin())) {
    return engine_->encode_prompt(Tokens(whole.begin() + held, whole.end()));
  }
  if (!text_.empty() && text.size() > text_.size() && text.compare(0, text_.size(), text_) == 0) {
    return engine_->encode_prompt(codec.encode_after(tokens_, text.substr(text_.size())));
  }
  restart = held > 0;
  return engine_->encode_prompt(whole);
}

}  // namespace ouro::core
