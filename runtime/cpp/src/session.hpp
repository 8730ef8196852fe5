// A conversation whose cache is kept between turns. Port of runtime/session.py.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "decode/generation.hpp"
#include "engine.hpp"

namespace ouro::core {

class Session;

// What was said in a session so far.
struct Conversation {
  std::int64_t depth = 0;  // one to be chosen is the most that there may be
  bool chosen = true;      // the depth is fixed
  Tokens tokens;
  std::vector<Message> messages;  // none where it is no chat
  std::string text;               // of the chat, as rendered and as answered
  std::size_t first = 0;          // tokens of the first turn's prompt
};

// One answer while it is being generated. Used from one thread, but for `cancel`. A stream that is
// dropped before its end, or fails, leaves its session with the pieces it has given; where there
// are none, as it was before the turn.
class Stream {
 public:
  Stream(std::shared_ptr<Session> session, Prompt prompt, Options options, Cancelled cancelled);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // The next token with its text; false once there is none. Throws engine_error.
  bool next(Piece& piece);
  // Ends it before its next token; from any thread.
  void cancel() noexcept { cancelled_ = true; }
  // Recurrences that it is made with; known once the first piece is there.
  std::int64_t depth() const;

 private:
  void begin();
  void end(bool failed = false) noexcept;

  // A prompt, read.
  struct Turn {
    Request request;
    std::vector<Message> messages;  // the chat with this turn; empty where it is none
    std::string text;               // that chat, rendered
    bool restart = false;           // the ids are the whole conversation, not what is new
    std::uint64_t version = 0;      // of the conversation when it was read
  };
  friend class Session;

  std::shared_ptr<Session> session_;
  Prompt prompt_;
  Options options_;
  Cancelled asked_;
  std::atomic<bool> cancelled_{false};
  std::optional<Turn> turn_;
  bool speaking_ = false, ended_ = false;
  bool whole_ = false;               // an answer that does not come to its end leaves no trace
  Conversation kept_;                // as it was before the turn
  std::optional<std::string> said_;  // the text of the pieces given; none before the first
  std::vector<Request> requests_;
  std::vector<Row> rows_;
  std::unique_ptr<Serving> serving_;
};

// A conversation at one depth; a turn feeds only what is new. Used from one thread; another that
// comes in between is refused. Its turns are plain text and ids, or all of a chat. With `mean`
// pooling the mean stays frozen on the first prompt. After a failure the next turn feeds all of the
// conversation again.
class Session : public std::enable_shared_from_this<Session> {
 public:
  // Throws engine_error for a depth that the bundle does not have.
  Session(std::shared_ptr<Engine> engine, const Depth& depth);

  // Adds a prompt to the conversation and answers it: a text or ids which continue it as they are,
  // or messages to add to a chat. The request is checked before this returns; where the
  // conversation has gone on before the first token is asked for, the prompt is read again.
  // Throws engine_error, also for a chat's turn where the session holds plain text, or the reverse;
  // the conversation is then unchanged. It is too whatever `generate` throws.
  std::unique_ptr<Stream> stream(Prompt prompt, const Options& options, Cancelled cancelled = {});
  Generation generate(Prompt prompt, const Options& options, Cancelled cancelled = {});
  // Forgets the conversation, and a depth that it has chosen.
  void reset();
  // Recurrences of every turn; one to be chosen is the most there may be until the first prompt
  // was fed.
  std::int64_t depth() const;
  // All tokens so far, prompts and answers.
  Tokens tokens() const;

 private:
  friend class Stream;

  Stream::Turn read(const Prompt& prompt, const Options& options) const;
  Tokens continue_plain(const Prompt& prompt) const;
  Tokens continue_chat(const std::string& text, bool& restart) const;
  void start_over() noexcept;
  // Of the depth still to be chosen; 0 where it is fixed.
  double threshold() const { return talk_.chosen ? 0.0 : halt_threshold_; }

  std::shared_ptr<Engine> engine_;
  std::int64_t most_;
  double halt_threshold_;
  mutable std::mutex mutex_;  // of all below
  bool busy_ = false;
  std::uint64_t version_ = 0;  // changes with every turn and reset
  Conversation talk_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace ouro::core
