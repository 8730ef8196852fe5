// The handles of the C interface, and how its calls check what they are given. No exception leaves
// it: `guard` turns each into a status.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "ouro/ouro.h"
#include "session.hpp"

namespace ouro::core::api {

// What every handle begins with: its kind, and 0 once it was released. A handle of another kind is
// told from a right one by it; one that was released only as long as its memory is not used again.
enum class Kind : std::uint32_t {
  kReleased = 0,
  kEngine = 0x4f75726f,
  kSession,
  kStream,
  kResult,
};

// A null or released handle, or one of another kind; or what no caller of a higher language gives.
struct BadArgument {
  std::string problem, cure;
};

[[noreturn]] inline void refuse(std::string problem, std::string cure) {
  throw BadArgument{std::move(problem), std::move(cure)};
}

// Of an array or a text that is null though its size is not 0.
inline constexpr char kGiveData[] = "give it, or a size of 0";

}  // namespace ouro::core::api

struct ouro_error {
  ouro_code code;
  std::string problem, cure, message;
};

struct ouro_engine {
  static constexpr ouro::core::api::Kind kKind = ouro::core::api::Kind::kEngine;
  ouro::core::api::Kind kind = kKind;
  std::shared_ptr<ouro::core::Engine> engine;
};

struct ouro_session {
  static constexpr ouro::core::api::Kind kKind = ouro::core::api::Kind::kSession;
  ouro::core::api::Kind kind = kKind;
  std::shared_ptr<ouro::core::Session> session;
};

struct ouro_stream {
  static constexpr ouro::core::api::Kind kKind = ouro::core::api::Kind::kStream;
  ouro::core::api::Kind kind = kKind;
  std::unique_ptr<ouro::core::Stream> stream;
  std::mutex busy;  // of all below
  ouro::core::Piece piece;
  std::vector<ouro_candidate> candidates;
  ouro_logprob logprob{};
};

struct ouro_result {
  static constexpr ouro::core::api::Kind kKind = ouro::core::api::Kind::kResult;
  ouro::core::api::Kind kind = kKind;
  std::vector<ouro::core::Generation> generations;
  std::vector<std::vector<ouro_logprob>> logprobs;      // of each generation
  std::vector<std::vector<ouro_candidate>> candidates;  // of each of its tokens, one after another
  std::vector<std::string> texts;
  ouro::core::Tokens ids;
  std::vector<float> floats;
  std::size_t rows = 0, columns = 0;
};

namespace ouro::core::api {

// Nothing is copied before the `try`: memory may be what has run out.
inline void set_error(ouro_error** error, ouro_code code, std::string_view problem,
                      std::string_view cure = {}, std::string_view before = {}) noexcept {
  if (error == nullptr) return;
  *error = nullptr;
  try {
    std::string said(before), next(cure);
    said += problem;
    std::string message = next.empty() ? said : said + "; " + next;
    *error = new ouro_error{code, std::move(said), std::move(next), std::move(message)};
  } catch (...) {
    // Out of memory: the status says it all.
  }
}

template <class Body>
ouro_status guard(ouro_error** error, const Body& body) noexcept {
  try {
    body();
    return OURO_OK;
  } catch (const ouro::core::Error& failed) {
    set_error(error, static_cast<ouro_code>(failed.code()), failed.problem(), failed.cure());
    return OURO_FAILED;
  } catch (const BadArgument& bad) {
    set_error(error, OURO_CODE_OTHER, bad.problem, bad.cure);
    return OURO_INVALID_ARGUMENT;
  } catch (const std::bad_alloc&) {
    set_error(error, OURO_CODE_OTHER, "out of memory", "free some, or ask for less at once");
    return OURO_OUT_OF_MEMORY;
  } catch (const std::exception& other) {
    set_error(error, OURO_CODE_OTHER, other.what(), {}, "internal fault: ");
    return OURO_INTERNAL;
  } catch (...) {
    set_error(error, OURO_CODE_OTHER, "internal fault");
    return OURO_INTERNAL;
  }
}

template <class Handle>
Handle& use(Handle* handle, const char* what) {
  constexpr char cure[] = "give a handle that a call gave out and that was not released";
  if (handle == nullptr) refuse(std::string("the ") + what + " is null", cure);
  if (handle->kind != Handle::kKind) {
    refuse(std::string("this is no ") + what + ", or it was released", cure);
  }
  return *handle;
}

template <class Handle>
void release(Handle* handle) noexcept {
  if (handle == nullptr || handle->kind == Kind::kReleased) return;
  handle->kind = Kind::kReleased;
  delete handle;
}

template <class Value>
Value& output(Value* value) {
  if (value == nullptr) refuse("an output is null", "give the address of a variable");
  return *value;
}

// A structure of a program that may be compiled against an older or newer header: the fields that
// both know, the others as `defaults` has them.
template <class Struct>
Struct read_struct(const Struct* given, Struct defaults, const char* what) {
  if (given == nullptr) return defaults;
  if (given->size < sizeof(std::size_t) || given->size > 4096) {
    refuse(std::string("the size of ") + what + " is not set", "begin with its _init function");
  }
  std::memcpy(&defaults, given, std::min(given->size, sizeof(Struct)));
  return defaults;
}

template <class Struct>
void check_struct(const Struct* target, const char* what) {
  if (target == nullptr) refuse(std::string("the ") + what + " is null", "give one to fill");
  if (target->size < sizeof(std::size_t) || target->size > 4096) {
    refuse(std::string("the size of the ") + what + " is not set", "set it to its sizeof");
  }
}

template <class Struct>
void write_struct(Struct* target, Struct value, const char* what) {
  check_struct(target, what);
  value.size = target->size;
  std::memcpy(target, &value, std::min(target->size, sizeof(Struct)));
}

ouro_text view(const std::string& text);
std::string read_text(ouro_text text);
Prompt read_prompt(const ouro_prompt* given);
Options read_options(const ouro_options* given);
Depth read_depth(std::int64_t depth, double halt_threshold);
Asked read_request(const ouro_request* given);
Cancelled read_cancelled(ouro_cancelled cancelled, void* user);
std::vector<ouro_candidate> list_candidates(const TokenLogprob& one);
std::unique_ptr<ouro_result> pack(std::vector<Generation> generations);

template <class Handle, class Member>
void give(Handle** target, Member member) {
  auto handle = std::make_unique<Handle>();
  if constexpr (std::is_same_v<Handle, ouro_engine>) handle->engine = std::move(member);
  if constexpr (std::is_same_v<Handle, ouro_session>) handle->session = std::move(member);
  if constexpr (std::is_same_v<Handle, ouro_stream>) handle->stream = std::move(member);
  *target = handle.release();
}

}  // namespace ouro::core::api
