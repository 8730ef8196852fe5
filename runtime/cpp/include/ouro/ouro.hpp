/**
 * @file ouro.hpp
 * @brief The C++17 face of ouro.h: values and owners in place of structures and handles.
 *
 * Header only: nothing but the C interface is linked, so that program and library need not be
 * compiled alike. Calls that fail throw ouro::Error. Threads are as in ouro.h.
 */
#ifndef OURO_HPP
#define OURO_HPP

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ouro/detail.hpp"
#include "ouro/types.hpp"

namespace ouro {

/**
 * An answer while it is being generated: `for (const ouro::Piece& piece : stream)`. Used from one
 * thread, but for `cancel`.
 */
class Stream {
 public:
  /** Walks over the pieces, once. */
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag; /**< of the standard library */
    using value_type = Piece;                          /**< likewise */
    using difference_type = std::ptrdiff_t;            /**< likewise */
    using pointer = const Piece*;                      /**< likewise */
    using reference = const Piece&;                    /**< likewise */

    /** The end. */
    Iterator() = default;
    /** The next piece of a stream, which must outlive this. */
    explicit Iterator(Stream& stream) : stream_(&stream) { ++*this; }
    /** The piece; not of the end. */
    reference operator*() const { return *piece_; }
    /** The piece; not of the end. */
    pointer operator->() const { return &*piece_; }
    /** Generates the next token. */
    Iterator& operator++() {
      piece_ = stream_->next();
      return *this;
    }
    /** Whether both are at the end, or neither. */
    friend bool operator==(const Iterator& one, const Iterator& other) {
      return one.piece_.has_value() == other.piece_.has_value();
    }
    /** Whether one is at the end and the other not. */
    friend bool operator!=(const Iterator& one, const Iterator& other) { return !(one == other); }

   private:
    Stream* stream_ = nullptr;
    std::optional<Piece> piece_;
  };

  /** Takes a handle over. */
  explicit Stream(ouro_stream* handle) : handle_(handle) {}

  /** The next token with its text; none once there is none. */
  std::optional<Piece> next() {
    ouro_piece from{};
    from.size = sizeof from;
    int more = 0;
    detail::call(ouro_stream_next, handle_.get(), &from, &more);
    if (more == 0) return std::nullopt;
    Piece piece;
    piece.text = detail::copy(from.text);
    if (from.token >= 0) piece.token = from.token;
    piece.finish = static_cast<Finish>(from.finish);
    if (from.logprob != nullptr) piece.logprob = detail::read(*from.logprob);
    piece.depth = from.depth;
    return piece;
  }
  /** Hands every piece to a function, until the end or until it returns false. */
  template <class Function>
  void each(Function function) {
    while (const std::optional<Piece> piece = next()) {
      if (!function(*piece)) return;
    }
  }
  /** Ends it before its next token; may be called from any thread. */
  void cancel() { detail::call(ouro_stream_cancel, handle_.get()); }
  /** Recurrences that it is made with; known once the first piece is there. */
  std::int64_t depth() const {
    std::int64_t depth = 0;
    detail::call(ouro_stream_depth, static_cast<const ouro_stream*>(handle_.get()), &depth);
    return depth;
  }
  /** The next piece, which is generated here. */
  Iterator begin() { return Iterator(*this); }
  /** The end. */
  Iterator end() { return Iterator(); }

 private:
  detail::Owner<ouro_stream, ouro_stream_release> handle_;
};

/** A conversation that keeps its cache between turns. Used from one thread. */
class Session {
 public:
  /** Takes a handle over. */
  explicit Session(ouro_session* handle) : handle_(handle) {}

  /**
   * Adds a prompt and answers it. The prompts of a session are text and ids, or all messages. Where
   * it fails, also by what `cancelled` throws, the conversation is as it was.
   */
  Generation generate(const Prompt& prompt, const Options& options = {},
                      const Cancelled& cancelled = {}) {
    const detail::Given given(prompt, options, {});
    const auto result = detail::obtain_asking<detail::Result>(
        cancelled, ouro_session_generate, handle_.get(), &given.prompt, &given.options);
    return detail::read_generation(result.get(), 0);
  }
  /** Adds a prompt and answers it, a token at a time. */
  Stream stream(const Prompt& prompt, const Options& options = {}) {
    const detail::Given given(prompt, options, {});
    ouro_stream* stream = nullptr;
    detail::call(ouro_session_stream, handle_.get(), &given.prompt, &given.options, &stream);
    return Stream(stream);
  }
  /** All tokens so far, prompts and answers. */
  Ids ids() const {
    const auto result = detail::obtain<detail::Result>(
        ouro_session_ids, static_cast<const ouro_session*>(handle_.get()));
    return detail::read_ids(result.get());
  }
  /** Recurrences of every turn; as ouro_session_depth says, where it is chosen. */
  std::int64_t depth() const {
    std::int64_t depth = 0;
    detail::call(ouro_session_depth, static_cast<const ouro_session*>(handle_.get()), &depth);
    return depth;
  }
  /** Forgets the conversation, and a depth that it has chosen. */
  void reset() { detail::call(ouro_session_reset, handle_.get()); }

 private:
  detail::Owner<ouro_session, ouro_session_release> handle_;
};

/** A loaded bundle. Safe to use from several threads; what it gives out may outlive it. */
class Engine {
 public:
  /** Verifies a bundle, given by its directory, and loads it. */
  explicit Engine(const std::string& path, const OpenOptions& options = {}) {
    ouro_open_options given;
    ouro_open_options_init(&given);
    given.backend = options.backend.c_str();
    given.threads = options.threads;
    given.accuracy_level = options.accuracy_level;
    ouro_engine* engine = nullptr;
    detail::call(ouro_engine_open, path.c_str(), &given, &engine);
    handle_.reset(engine);
  }

  /** Generates from one prompt. */
  Generation generate(const Prompt& prompt, const Depth& depth = {}, const Options& options = {},
                      const Cancelled& cancelled = {}) {
    const detail::Given given(prompt, options, depth);
    return std::move(run(&given.request, 1, cancelled).front());
  }
  /** Generates from prompts that advance together, each at its own depth. */
  std::vector<Generation> generate(const std::vector<Request>& requests,
                                   const Cancelled& cancelled = {}) {
    std::vector<std::unique_ptr<detail::Given>> given;
    std::vector<ouro_request> array;
    for (const Request& one : requests) {
      given.push_back(std::make_unique<detail::Given>(one.prompt, one.options, one.depth));
      array.push_back(given.back()->request);
    }
    return run(array.data(), array.size(), cancelled);
  }
  /** Generates from one prompt, a token at a time. */
  Stream stream(const Prompt& prompt, const Depth& depth = {}, const Options& options = {}) {
    const detail::Given given(prompt, options, depth);
    ouro_stream* stream = nullptr;
    detail::call(ouro_stream_open, handle_.get(), &given.request, &stream);
    return Stream(stream);
  }
  /** A conversation that keeps its cache between turns. */
  Session session(const Depth& depth = {}) {
    ouro_session* session = nullptr;
    detail::call(ouro_session_open, handle_.get(), depth.steps, depth.halt_threshold, &session);
    return Session(session);
  }
  /** Logits of every position of a prompt; Depth::automatic is refused. */
  Logits logits(const Prompt& prompt, const Depth& depth = {}) {
    const detail::Given given(prompt, {}, depth);
    const auto result =
        detail::obtain<detail::Result>(ouro_logits, handle_.get(), &given.prompt, depth.steps);
    Logits logits;
    const float* values = nullptr;
    detail::call(ouro_result_floats, static_cast<const ouro_result*>(result.get()), &values,
                 &logits.rows, &logits.columns);
    logits.values.assign(values, values + logits.rows * logits.columns);
    return logits;
  }
  /** Token ids of a text, as if it began a sequence. */
  Ids tokenize(const std::string& text) const {
    const auto result = detail::obtain<detail::Result>(
        ouro_tokenize, static_cast<const ouro_engine*>(handle_.get()), detail::view(text));
    return detail::read_ids(result.get());
  }
  /** The text of token ids, special tokens left out. */
  std::string detokenize(const Ids& ids) const {
    const auto result = detail::obtain<detail::Result>(
        ouro_detokenize, static_cast<const ouro_engine*>(handle_.get()), ids.data(), ids.size());
    return detail::read_text(result.get(), 0);
  }
  /** What the bundle is and what runs it. */
  Info info() const {
    ouro_info from{};
    from.size = sizeof from;
    detail::call(ouro_engine_info, static_cast<const ouro_engine*>(handle_.get()), &from);
    Info info;
    info.min_depth = from.min_depth;
    info.max_depth = from.max_depth;
    info.default_depth = from.default_depth;
    info.vocab_size = from.vocab_size;
    info.hidden_size = from.hidden_size;
    info.max_positions = from.max_positions;
    info.can_choose_depth = from.can_choose_depth != 0;
    info.can_chat = from.can_chat != 0;
    info.backend = detail::copy(from.backend);
    info.reason = detail::copy(from.reason);
    info.precision = detail::copy(from.precision);
    return info;
  }
  /** Warnings since the last call, such as of a depth that was never trained. */
  std::vector<std::string> warnings() {
    const auto result = detail::obtain<detail::Result>(ouro_engine_warnings, handle_.get());
    std::vector<std::string> texts;
    for (std::size_t index = 0; index < ouro_result_count(result.get()); ++index) {
      texts.push_back(detail::read_text(result.get(), index));
    }
    return texts;
  }
  /** Frees the graph once requests in progress have ended; no request is answered after this. */
  void close() { detail::call(ouro_engine_close, handle_.get()); }

 private:
  std::vector<Generation> run(const ouro_request* requests, std::size_t count,
                              const Cancelled& cancelled) {
    const auto result = detail::obtain_asking<detail::Result>(cancelled, ouro_generate,
                                                              handle_.get(), requests, count);
    std::vector<Generation> generations;
    for (std::size_t index = 0; index < count; ++index) {
      generations.push_back(detail::read_generation(result.get(), index));
    }
    return generations;
  }

  detail::Owner<ouro_engine, ouro_engine_release> handle_;
};

}  // namespace ouro

#endif
