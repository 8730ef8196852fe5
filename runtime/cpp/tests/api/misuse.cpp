// Calls of the C interface that get what they can't take: a status each, and nothing touched.
//   misuse BUNDLE SCENARIO
#include <cstddef>
#include <cstdint>
#include <string>

#include "api/scenarios.hpp"
#include "ouro/ouro.hpp"

namespace {

const int64_t kIds[] = {5, 6};

// An engine with a session, released in the end.
struct Opened {
  ouro_engine* engine = nullptr;
  ouro_session* session = nullptr;

  explicit Opened(const std::string& bundle) {
    ouro_open_options open;
    ouro_open_options_init(&open);
    open.backend = "cpu";
    require(ouro_engine_open(bundle.c_str(), &open, &engine, nullptr) == OURO_OK, "opening");
    require(ouro_session_open(engine, 1, 0, &session, nullptr) == OURO_OK, "a session");
  }
  ~Opened() {
    ouro_session_release(session);
    ouro_engine_release(engine);
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
};

ouro_prompt ids_prompt() {
  ouro_prompt prompt;
  ouro_prompt_init(&prompt);
  prompt.kind = OURO_PROMPT_IDS;
  prompt.ids = kIds;
  prompt.id_count = 2;
  return prompt;
}

// What a call says that got what it can't take: a status, the problem and its cure.
void refused(ouro_status status, ouro_error* error, const std::string& problem) {
  const ouro::Error said(status, error);
  require(status == OURO_INVALID_ARGUMENT && said.problem() == problem, said.what());
  require(!said.cure().empty(), problem + " has no cure");
}

void opening(const std::string& bundle) {
  ouro_error* error = nullptr;
  ouro_engine* engine = nullptr;
  const ouro_status status = ouro_engine_open(nullptr, nullptr, &engine, &error);
  refused(status, error, "the path is null");
  require(ouro_engine_open(bundle.c_str(), nullptr, nullptr, nullptr) == OURO_INVALID_ARGUMENT,
          "no output");
  require(ouro_engine_open("/nowhere", nullptr, &engine, nullptr) == OURO_FAILED, "no bundle");
  require(engine == nullptr, "an output of a call that failed was touched");
  ouro_open_options unset{};
  require(ouro_engine_open(bundle.c_str(), &unset, &engine, nullptr) == OURO_INVALID_ARGUMENT,
          "a size that is not set");
}

// A handle of another kind, and handles that are null.
void handles(const std::string& bundle) {
  const Opened opened(bundle);
  ouro_error* error = nullptr;
  ouro_result* result = nullptr;
  auto* wrong = reinterpret_cast<ouro_engine*>(opened.session);
  ouro_status status = ouro_tokenize(wrong, {"a", 1}, &result, &error);
  refused(status, error, "this is no engine, or it was released");
  status = ouro_tokenize(nullptr, {"a", 1}, &result, &error);
  refused(status, error, "the engine is null");
  status = ouro_tokenize(opened.engine, {nullptr, 1}, &result, &error);
  refused(status, error, "a text is null");
  require(result == nullptr, "an output of a call that failed was touched");
  require(ouro_engine_info(opened.engine, nullptr, nullptr) == OURO_INVALID_ARGUMENT, "no info");
  ouro_stream_release(nullptr);
  ouro_result_release(nullptr);
  ouro_error_release(nullptr);
  require(ouro_result_count(nullptr) == 0, "the count of nothing");
}

void prompts(const std::string& bundle) {
  const Opened opened(bundle);
  ouro_result* result = nullptr;
  const auto generate = [&](const ouro_request* request) {
    return ouro_generate(opened.engine, request, 1, nullptr, nullptr, &result, nullptr);
  };
  require(generate(nullptr) == OURO_INVALID_ARGUMENT, "requests");
  ouro_request request;
  ouro_request_init(&request);
  require(generate(&request) == OURO_INVALID_ARGUMENT, "a request without a prompt");
  ouro_prompt prompt;
  ouro_prompt_init(&prompt);
  prompt.kind = 7;
  request.prompt = &prompt;
  require(generate(&request) == OURO_INVALID_ARGUMENT, "a prompt of no kind");
  require(result == nullptr, "an output of a call that failed was touched");
}

// A call that has nowhere to put its answer does not answer.
void outputs(const std::string& bundle) {
  const Opened opened(bundle);
  ouro_error* error = nullptr;
  ouro_result* result = nullptr;
  const ouro_prompt prompt = ids_prompt();
  require(ouro_session_generate(opened.session, &prompt, nullptr, nullptr, nullptr, nullptr,
                                nullptr) == OURO_INVALID_ARGUMENT,
          "no output of a session");
  const ouro_cancelled failing = [](void*) -> int { return OURO_ASKING_FAILED; };
  require(ouro_session_generate(opened.session, &prompt, nullptr, failing, nullptr, &result,
                                nullptr) == OURO_FAILED,
          "a callback that fails");
  require(ouro_session_ids(opened.session, &result, nullptr) == OURO_OK, "the ids of a session");
  const int64_t* kept = nullptr;
  size_t held = 7;
  const ouro_status status = ouro_result_ids(result, nullptr, &held, &error);
  refused(status, error, "an output is null");
  require(held == 7, "an output of a call that failed was touched");
  require(ouro_result_ids(result, &kept, &held, nullptr) == OURO_OK && held == 0,
          "a session that answered nobody");
  ouro_result_release(result);
  ouro_stream* stream = nullptr;
  require(ouro_session_stream(opened.session, &prompt, nullptr, &stream, nullptr) == OURO_OK,
          "a stream");
  ouro_piece unsized{};
  int more = 7;
  require(ouro_stream_next(stream, &unsized, &more, nullptr) == OURO_INVALID_ARGUMENT, "a piece");
  require(more == 7, "an output of a call that failed was touched");
  ouro_stream_release(stream);
}

// Text that is not UTF-8: a stop string is refused, a role only looked at.
void texts(const std::string& bundle) {
  const Opened opened(bundle);
  ouro_stream* stream = nullptr;
  ouro_prompt prompt = ids_prompt();
  ouro_options given;
  ouro_options_init(&given);
  const ouro_text stops[] = {{"\xA9", 1}};
  given.stop = stops;
  given.stop_count = 1;
  require(ouro_session_stream(opened.session, &prompt, &given, &stream, nullptr) == OURO_FAILED,
          "a stop");
  const std::string role = std::string(39, 'r') + "\xF0";
  const ouro_message message = {{role.data(), role.size()}, {"Hi", 2}};
  prompt.kind = OURO_PROMPT_MESSAGES;
  prompt.messages = &message;
  prompt.message_count = 1;
  require(ouro_session_stream(opened.session, &prompt, nullptr, &stream, nullptr) == OURO_FAILED,
          "a role");
  require(stream == nullptr, "an output of a call that failed was touched");
}

}  // namespace

int main(int argc, char** argv) {
  return run_scenario({{"opening", opening},
                       {"handles", handles},
                       {"prompts", prompts},
                       {"outputs", outputs},
                       {"texts", texts}},
                      argc, argv);
}
