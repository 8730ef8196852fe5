// The values of the C interface: errors, structures and results.
#include "api/handles.hpp"
#include "defaults.hpp"
#include "text/unicode.hpp"

namespace ouro::core::api {

ouro_text view(const std::string& text) { return {text.data(), text.size()}; }

std::string read_text(ouro_text text) {
  if (text.data == nullptr && text.bytes > 0) refuse("a text is null", kGiveData);
  return text.bytes == 0 ? std::string() : std::string(text.data, text.bytes);
}

Prompt read_prompt(const ouro_prompt* given) {
  if (given == nullptr) refuse("the prompt is null", "give one that ouro_prompt_init began");
  ouro_prompt defaults;
  ouro_prompt_init(&defaults);
  const ouro_prompt prompt = read_struct(given, defaults, "ouro_prompt");
  switch (prompt.kind) {
    case OURO_PROMPT_TEXT:
      return read_text(prompt.text);
    case OURO_PROMPT_IDS:
      if (prompt.ids == nullptr && prompt.id_count > 0) {
        refuse("the prompt's ids are null", kGiveData);
      }
      return Tokens(prompt.ids, prompt.ids + prompt.id_count);
    case OURO_PROMPT_MESSAGES: {
      if (prompt.messages == nullptr && prompt.message_count > 0) {
        refuse("the prompt's messages are null", kGiveData);
      }
      if (prompt.message_count == 0) {
        throw engine_error("empty prompt", "give at least one message");
      }
      std::vector<Message> messages;
      for (std::size_t index = 0; index < prompt.message_count; ++index) {
        const ouro_message& one = prompt.messages[index];
        messages.push_back({read_text(one.role), read_text(one.content)});
      }
      return messages;
    }
    default:
      refuse("the prompt's kind is " + std::to_string(prompt.kind), "allowed: 0..2");
  }
}

Options read_options(const ouro_options* given) {
  ouro_options defaults;
  ouro_options_init(&defaults);
  const ouro_options from = read_struct(given, defaults, "ouro_options");
  Options options;
  options.max_new_tokens = from.max_new_tokens;
  if (from.given & OURO_GIVEN_TEMPERATURE) options.temperature = from.temperature;
  if (from.given & OURO_GIVEN_TOP_K) options.top_k = from.top_k;
  if (from.given & OURO_GIVEN_TOP_P) options.top_p = from.top_p;
  if (from.given & OURO_GIVEN_MIN_P) options.min_p = from.min_p;
  if (from.given & OURO_GIVEN_REPETITION_PENALTY) {
    options.repetition_penalty = from.repetition_penalty;
  }
  if (from.given & OURO_GIVEN_SEED) options.seed = from.seed;
  if (from.given & OURO_GIVEN_LOGPROBS) options.logprobs = from.logprobs;
  if (from.stop == nullptr && from.stop_count > 0) refuse("the stop strings are null", kGiveData);
  for (std::size_t index = 0; index < from.stop_count; ++index) {
    options.stop.push_back(read_text(from.stop[index]));
    if (!is_utf8(options.stop.back())) {
      throw engine_error("a stop string is not UTF-8", "give text that is UTF-8");
    }
  }
  return options;
}

Depth read_depth(std::int64_t depth, double halt_threshold) {
  Depth result;
  result.automatic = depth == OURO_DEPTH_AUTO;
  if (!result.automatic && depth != OURO_DEPTH_DEFAULT) result.steps = depth;
  if (halt_threshold != 0.0) result.halt_threshold = halt_threshold;
  return result;
}

Asked read_request(const ouro_request* given) {
  if (given == nullptr) refuse("the request is null", "give one that ouro_request_init began");
  ouro_request defaults;
  ouro_request_init(&defaults);
  const ouro_request request = read_struct(given, defaults, "ouro_request");
  return {read_prompt(request.prompt), read_depth(request.depth, request.halt_threshold),
          read_options(request.options)};
}

Cancelled read_cancelled(ouro_cancelled cancelled, void* user) {
  if (cancelled == nullptr) return {};
  return [cancelled, user] {
    const int answer = cancelled(user);
    if (answer == OURO_ASKING_FAILED) {
      throw engine_error("the function that is asked before every token failed",
                         "look into what it asks; it gave OURO_ASKING_FAILED");
    }
    return answer != 0;
  };
}

std::vector<ouro_candidate> list_candidates(const TokenLogprob& one) {
  std::vector<ouro_candidate> best;
  for (const auto& [token, logprob] : one.best) best.push_back({token, logprob});
  return best;
}

std::unique_ptr<ouro_result> pack(std::vector<Generation> generations) {
  auto result = std::make_unique<ouro_result>();
  result->generations = std::move(generations);
  for (const Generation& one : result->generations) {
    std::vector<ouro_logprob> row;
    for (const auto& logprob : one.logprobs) {
      result->candidates.push_back(list_candidates(logprob));
      const auto& best = result->candidates.back();
      row.push_back({logprob.token, logprob.logprob, best.data(), best.size()});
    }
    result->logprobs.push_back(std::move(row));
  }
  return result;
}

}  // namespace ouro::core::api

using ouro::core::api::guard;
using ouro::core::api::output;
using ouro::core::api::refuse;
using ouro::core::api::use;
using ouro::core::api::view;
using ouro::core::api::write_struct;

namespace {

static_assert(OURO_MAX_NEW_TOKENS_DEFAULT == ouro::core::kMaxNewTokens);

constexpr char kCount[] = "allowed: below what ouro_result_count gives";

}  // namespace

uint32_t ouro_abi_version(void) { return OURO_ABI_VERSION; }
const char* ouro_version(void) { return OURO_VERSION; }

ouro_code ouro_error_code(const ouro_error* error) {
  return error == nullptr ? OURO_CODE_OTHER : error->code;
}
const char* ouro_error_problem(const ouro_error* error) {
  return error == nullptr ? "" : error->problem.c_str();
}
const char* ouro_error_cure(const ouro_error* error) {
  return error == nullptr ? "" : error->cure.c_str();
}
const char* ouro_error_message(const ouro_error* error) {
  return error == nullptr ? "" : error->message.c_str();
}
void ouro_error_release(ouro_error* error) { delete error; }

void ouro_open_options_init(ouro_open_options* options) {
  if (options != nullptr) *options = {sizeof *options, nullptr, 0, 0};
}
void ouro_options_init(ouro_options* options) {
  if (options != nullptr)
    *options = {sizeof *options, 0, OURO_MAX_NEW_TOKENS_DEFAULT, 0, 0, 1, 0, 1, 0, 0, nullptr, 0};
}
void ouro_prompt_init(ouro_prompt* prompt) {
  if (prompt != nullptr) {
    *prompt = {sizeof *prompt, OURO_PROMPT_TEXT, {nullptr, 0}, nullptr, 0, nullptr, 0};
  }
}
void ouro_request_init(ouro_request* request) {
  if (request != nullptr) *request = {sizeof *request, nullptr, nullptr, OURO_DEPTH_DEFAULT, 0};
}

size_t ouro_result_count(const ouro_result* result) {
  if (result == nullptr || result->kind != ouro_result::kKind) return 0;
  return result->generations.empty() ? result->texts.size() : result->generations.size();
}

ouro_status ouro_result_generation(const ouro_result* result, size_t index,
                                   ouro_generation* generation, ouro_error** error) {
  return guard(error, [&] {
    const ouro_result& own = use(result, "result");
    if (index >= own.generations.size()) {
      refuse("the result holds no generation of that index", kCount);
    }
    const ouro::core::Generation& one = own.generations[index];
    ouro_generation value{};
    value.text = view(one.text);
    value.ids = one.tokens.data();
    value.id_count = one.tokens.size();
    value.prompt_tokens = one.prompt_tokens;
    value.depth = one.depth;
    value.finish = static_cast<ouro_finish>(one.finish);
    value.logprobs = own.logprobs[index].empty() ? nullptr : own.logprobs[index].data();
    write_struct(generation, value, "generation");
  });
}

ouro_status ouro_result_text(const ouro_result* result, size_t index, ouro_text* text,
                             ouro_error** error) {
  return guard(error, [&] {
    const ouro_result& own = use(result, "result");
    if (index >= own.texts.size()) refuse("the result holds no text of that index", kCount);
    output(text) = view(own.texts[index]);
  });
}

ouro_status ouro_result_ids(const ouro_result* result, const int64_t** ids, size_t* count,
                            ouro_error** error) {
  return guard(error, [&] {
    const ouro_result& own = use(result, "result");
    output(ids);  // all are looked at before one is written
    output(count) = own.ids.size();
    *ids = own.ids.data();
  });
}

ouro_status ouro_result_floats(const ouro_result* result, const float** floats, size_t* rows,
                               size_t* columns, ouro_error** error) {
  return guard(error, [&] {
    const ouro_result& own = use(result, "result");
    output(rows);
    output(columns);
    output(floats) = own.floats.data();
    *rows = own.rows;
    *columns = own.columns;
  });
}
void ouro_result_release(ouro_result* result) { ouro::core::api::release(result); }
