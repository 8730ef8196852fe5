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
  if (speaking_) end(whole_);
}

std::int64_t Stream::depth() const { return session_->depth(); }

bool Stream::next(Piece& piece) {
  if (ended_) return false;
  if (!speaking_) begin();
  std::vector<std::optional<Piece>> pieces;
  const auto cancelled = [this] { return cancelled_.load() || (asked_ && asked_()); };
  try {
    if (!serving_->next(cancelled, pieces)) {
      end();
      return false;
    }
    const std::lock_guard<std::mutex> guard(session_->mutex_);
    Conversation& talk = session_->talk_;
    if (!talk.chosen) session_->engine_->warn_untrained({rows_[0].depth()});
    talk.depth = rows_[0].depth();
    talk.chosen = true;
    if (pieces[0]->token) talk.tokens.push_back(*pieces[0]->token);
    if (!said_) said_.emplace();
    *said_ += pieces[0]->text;
  } catch (...) {
    end(true);
    throw;
  }
  piece = std::move(*pieces[0]);
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
  if (anew) made = session.engine_->new_decoder({session.talk_.depth}, session.threshold());
  Decoder& decoder = anew ? *made : *session.decoder_;
  // The last token of an answer has not been fed: it comes first now. An empty cache gets the first
  // prompt apart, as it was: a mean is frozen on it.
  const std::size_t first = turn_->restart ? 0 : session.talk_.first;
  const std::int64_t length = decoder.cache().lengths()[0];
  const std::int64_t held = length > 0 ? length : static_cast<std::int64_t>(first);
  Request fed = turn_->request;
  const Tokens whole = join(fed.before, fed.ids);
  fed.ids.assign(whole.begin() + held, whole.end());
  fed.before.assign(whole.begin(), whole.begin() + held);
  fed.halt_threshold = session.threshold();
  Conversation talk = {session.talk_.depth, session.talk_.chosen, whole,
                       turn_->messages,     turn_->text,          first > 0 ? first : whole.size()};
  rows_.clear();
  rows_.push_back(session.engine_->new_row(fed));
  requests_.clear();
  requests_.push_back(std::move(fed));
  serving_ = std::make_unique<Serving>(decoder, requests_, rows_);
  if (anew) session.decoder_ = std::move(made);
  kept_ = std::exchange(session.talk_, std::move(talk));
  ++session.version_;
  session.busy_ = speaking_ = true;
}

// Gives the session back with what was given of the answer.
void Stream::end(bool failed) noexcept {
  ended_ = true;
  speaking_ = false;
  try {
    Session& session = *session_;
    const std::lock_guard<std::mutex> guard(session.mutex_);
    session.busy_ = false;
    ++session.version_;
    if (failed) session.decoder_.reset();  // who knows what it holds
    if (failed && (whole_ || !said_)) {
      session.talk_ = std::move(kept_);
    } else if (Conversation& talk = session.talk_; !talk.messages.empty()) {
      talk.messages.push_back({"assistant", said_.value_or("")});
      // A row that failed inside a token is ahead of the pieces: the next turn renders anew.
      const Generation made = rows_[0].result();
      const std::size_t told = static_cast<std::size_t>(made.prompt_tokens) + made.tokens.size();
      talk.text = told == talk.tokens.size() ? talk.text + rows_[0].spoken() : "";
    }
  } catch (...) {
    // Out of memory: the chat goes on without this answer, which the next turn then renders anew.
  }
}

Session::Session(std::shared_ptr<Engine> engine, const Depth& depth) : engine_(std::move(engine)) {
  const Engine::ChosenDepth chosen = engine_->choose_depth(depth);
  most_ = chosen.steps;
  halt_threshold_ = chosen.threshold;
  start_over();
}

std::unique_ptr<Stream> Session::stream(Prompt prompt, const Options& options,
                                        Cancelled cancelled) {
  auto stream = std::make_unique<Stream>(shared_from_this(), std::move(prompt), options,
                                         std::move(cancelled));
  const std::lock_guard<std::mutex> guard(mutex_);
  stream->turn_ = read(stream->prompt_, options);
  if (!busy_ && !decoder_) decoder_ = engine_->new_decoder({talk_.depth}, threshold());
  return stream;
}

Generation Session::generate(Prompt prompt, const Options& options, Cancelled cancelled) {
  const auto answer = stream(std::move(prompt), options, std::move(cancelled));
  answer->whole_ = true;
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
  return talk_.depth;
}

Tokens Session::tokens() const {
  const std::lock_guard<std::mutex> guard(mutex_);
  return talk_.tokens;
}

// Forgets the conversation, and a depth that it has chosen.
void Session::start_over() noexcept {
  talk_ = {};
  talk_.depth = most_;
  talk_.chosen = halt_threshold_ == 0.0;
  ++version_;
  decoder_.reset();
}

// What a prompt adds to the conversation as it is now.
Stream::Turn Session::read(const Prompt& prompt, const Options& options) const {
  Stream::Turn turn;
  Tokens ids;
  const auto* added = std::get_if<std::vector<Message>>(&prompt);
  if (!talk_.tokens.empty() && (added != nullptr) == talk_.messages.empty()) {
    const std::string text = "plain text", chat = "a chat", held = added ? text : chat;
    throw engine_error("this session holds " + held + ", and the turn is " + (added ? chat : text),
                       "make the turn " + held + " too, or reset the session first");
  }
  if (added != nullptr) {
    turn.messages = talk_.messages;
    turn.messages.insert(turn.messages.end(), added->begin(), added->end());
    turn.text = engine_->render(turn.messages);
    ids = continue_chat(turn.text, turn.restart);
  } else {
    ids = continue_plain(prompt);
  }
  turn.version = version_;
  turn.request = engine_->new_request(std::move(ids), talk_.depth, options,
                                      turn.restart ? Tokens{} : talk_.tokens);
  return turn;
}

// Tokens to feed for a prompt that is no chat.
Tokens Session::continue_plain(const Prompt& prompt) const {
  const auto* text = std::get_if<std::string>(&prompt);
  if (!talk_.tokens.empty() && text != nullptr && !text->empty()) {
    return engine_->encode_prompt(engine_->codec().encode_after(talk_.tokens, *text));
  }
  return engine_->encode_prompt(prompt, talk_.tokens.empty());
}

// Tokens to feed so that the cache holds a rendered chat, and whether to start over. The cache is
// kept where the chat goes on exactly as it was answered, also where the model has put its answer
// into other tokens than the tokenizer would. A template that rewrites earlier turns, or an answer
// cut inside a text that the chat does not repeat, starts over.
Tokens Session::continue_chat(const std::string& text, bool& restart) const {
  const Codec& codec = engine_->codec();
  const Tokens& tokens = talk_.tokens;
  const std::string& said = talk_.text;
  const Tokens whole = codec.encode(text, false);
  const auto held = static_cast<std::ptrdiff_t>(tokens.size());
  restart = false;
  if (held > 0 && tokens.size() < whole.size() &&
      std::equal(tokens.begin(), tokens.end(), whole.begin())) {
    return engine_->encode_prompt(Tokens(whole.begin() + held, whole.end()));
  }
  if (!said.empty() && text.size() > said.size() && text.compare(0, said.size(), said) == 0) {
    return engine_->encode_prompt(codec.encode_after(tokens, text.substr(said.size())));
  }
  restart = held > 0;
  return engine_->encode_prompt(whole);
}

}  // namespace ouro::core
