/**
 * @file detail.hpp
 * @brief How ouro.hpp calls ouro.h; not to be included by programs.
 */
#ifndef OURO_DETAIL_HPP
#define OURO_DETAIL_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "ouro/types.hpp"

namespace ouro {

/** @cond DETAIL not part of the interface */
namespace detail {

template <class Handle, void (*kRelease)(Handle*)>
struct Releaser {
  void operator()(Handle* handle) const noexcept { kRelease(handle); }
};
template <class Handle, void (*kRelease)(Handle*)>
using Owner = std::unique_ptr<Handle, Releaser<Handle, kRelease>>;
using Result = Owner<ouro_result, ouro_result_release>;

inline void check(ouro_status status, ouro_error* error) {
  if (status != OURO_OK) throw Error(status, error);
}

// Calls a function whose last argument is the error.
template <class Function, class... Arguments>
void call(Function function, Arguments... arguments) {
  ouro_error* error = nullptr;
  const ouro_status status = function(arguments..., &error);  // before `error` is read
  check(status, error);
}

// The same, of a function whose last argument but the error is a handle that it gives out.
template <class Owned, class Function, class... Arguments>
Owned obtain(Function function, Arguments... arguments) {
  typename Owned::pointer handle = nullptr;
  call(function, arguments..., &handle);
  return Owned(handle);
}

inline ouro_text view(const std::string& text) { return {text.data(), text.size()}; }
inline std::string copy(ouro_text text) { return std::string(text.data, text.bytes); }

// Structures of the C interface over values, which must outlive them.
struct Given {
  ouro_prompt prompt;
  ouro_options options;
  ouro_request request;
  std::vector<ouro_message> messages;
  std::vector<ouro_text> stop;

  Given(const Prompt& from, const Options& chosen, const Depth& depth) {
    ouro_prompt_init(&prompt);
    if (const auto* text = std::get_if<std::string>(&from)) {
      prompt.text = view(*text);
    } else if (const auto* ids = std::get_if<Ids>(&from)) {
      prompt.kind = OURO_PROMPT_IDS;
      prompt.ids = ids->data();
      prompt.id_count = ids->size();
    } else {
      for (const Message& one : std::get<std::vector<Message>>(from)) {
        messages.push_back({view(one.role), view(one.content)});
      }
      prompt.kind = OURO_PROMPT_MESSAGES;
      prompt.messages = messages.data();
      prompt.message_count = messages.size();
    }
    ouro_options_init(&options);
    options.max_new_tokens = chosen.max_new_tokens;
    set(chosen.temperature, options.temperature, OURO_GIVEN_TEMPERATURE);
    set(chosen.top_k, options.top_k, OURO_GIVEN_TOP_K);
    set(chosen.top_p, options.top_p, OURO_GIVEN_TOP_P);
    set(chosen.min_p, options.min_p, OURO_GIVEN_MIN_P);
    set(chosen.repetition_penalty, options.repetition_penalty, OURO_GIVEN_REPETITION_PENALTY);
    set(chosen.seed, options.seed, OURO_GIVEN_SEED);
    set(chosen.logprobs, options.logprobs, OURO_GIVEN_LOGPROBS);
    for (const std::string& text : chosen.stop) stop.push_back(view(text));
    options.stop = stop.data();
    options.stop_count = stop.size();
    ouro_request_init(&request);
    request.prompt = &prompt;
    request.options = &options;
    request.depth = depth.steps;
    request.halt_threshold = depth.halt_threshold;
  }
  Given(const Given&) = delete;
  Given& operator=(const Given&) = delete;

 private:
  template <class Value>
  void set(const std::optional<Value>& from, Value& to, int bit) {
    if (!from) return;
    to = *from;
    options.given |= static_cast<std::uint32_t>(bit);
  }
};

// Carries a C++ function through the C interface: what it throws is kept, fails the call, and is
// thrown again behind it.
struct Asking {
  const Cancelled& function;
  std::exception_ptr thrown;

  static int ask(void* user) {
    auto& self = *static_cast<Asking*>(user);
    try {
      return self.function() ? 1 : 0;
    } catch (...) {
      self.thrown = std::current_exception();
      return OURO_ASKING_FAILED;
    }
  }
};

// As `obtain`, of a function whose last arguments before the handle are an ouro_cancelled and what
// is handed to it.
template <class Owned, class Function, class... Arguments>
Owned obtain_asking(const Cancelled& cancelled, Function function, Arguments... arguments) {
  Asking asking{cancelled, nullptr};
  const ouro_cancelled ask = cancelled ? Asking::ask : nullptr;
  typename Owned::pointer handle = nullptr;
  ouro_error* error = nullptr;
  const ouro_status status = function(arguments..., ask, &asking, &handle, &error);
  Owned owned(handle);
  if (asking.thrown) {
    ouro_error_release(error);
    std::rethrow_exception(asking.thrown);
  }
  check(status, error);
  return owned;
}

inline Logprob read(const ouro_logprob& from) {
  Logprob one{from.token, from.logprob, {}};
  for (std::size_t index = 0; index < from.best_count; ++index) {
    one.best.emplace_back(from.best[index].token, from.best[index].logprob);
  }
  return one;
}

inline Generation read_generation(const ouro_result* result, std::size_t index) {
  ouro_generation from{};
  from.size = sizeof from;
  call(ouro_result_generation, result, index, &from);
  Generation one;
  one.text = copy(from.text);
  one.ids.assign(from.ids, from.ids + from.id_count);
  one.prompt_tokens = from.prompt_tokens;
  one.depth = from.depth;
  one.finish = static_cast<Finish>(from.finish);
  for (std::size_t token = 0; from.logprobs != nullptr && token < from.id_count; ++token) {
    one.logprobs.push_back(read(from.logprobs[token]));
  }
  return one;
}

inline Ids read_ids(const ouro_result* result) {
  const std::int64_t* ids = nullptr;
  std::size_t count = 0;
  call(ouro_result_ids, result, &ids, &count);
  return Ids(ids, ids + count);
}

inline std::string read_text(const ouro_result* result, std::size_t index) {
  ouro_text text{};
  call(ouro_result_text, result, index, &text);
  return copy(text);
}

}  // namespace detail
/** @endcond */

}  // namespace ouro

#endif
