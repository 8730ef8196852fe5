// The calls of the C interface, over the engine and its sessions.
#include "api/handles.hpp"

namespace ouro::core::api {
namespace {

std::unique_ptr<ouro_result> pack_ids(Tokens ids) {
  auto result = std::make_unique<ouro_result>();
  result->ids = std::move(ids);
  return result;
}

std::unique_ptr<ouro_result> pack_texts(std::vector<std::string> texts) {
  auto result = std::make_unique<ouro_result>();
  result->texts = std::move(texts);
  return result;
}

}  // namespace
}  // namespace ouro::core::api

using ouro::core::Tokens;
using ouro::core::api::check_struct;
using ouro::core::api::give;
using ouro::core::api::guard;
using ouro::core::api::kGiveData;
using ouro::core::api::list_candidates;
using ouro::core::api::output;
using ouro::core::api::pack;
using ouro::core::api::pack_ids;
using ouro::core::api::pack_texts;
using ouro::core::api::read_cancelled;
using ouro::core::api::read_depth;
using ouro::core::api::read_options;
using ouro::core::api::read_prompt;
using ouro::core::api::read_request;
using ouro::core::api::read_struct;
using ouro::core::api::read_text;
using ouro::core::api::refuse;
using ouro::core::api::release;
using ouro::core::api::use;
using ouro::core::api::view;
using ouro::core::api::write_struct;

ouro_status ouro_engine_open(const char* path, const ouro_open_options* options,
                             ouro_engine** engine, ouro_error** error) {
  return guard(error, [&] {
    output(engine);
    if (path == nullptr) refuse("the path is null", "give the directory of a bundle");
    ouro_open_options defaults;
    ouro_open_options_init(&defaults);
    const ouro_open_options given = read_struct(options, defaults, "ouro_open_options");
    const auto number = [](std::int64_t value) {
      return value == 0 ? std::nullopt : std::optional<std::int64_t>(value);
    };
    give(engine, ouro::core::Engine::open(std::filesystem::u8path(path),
                                          given.backend == nullptr ? "auto" : given.backend,
                                          number(given.threads), number(given.accuracy_level)));
  });
}

ouro_status ouro_engine_close(ouro_engine* engine, ouro_error** error) {
  return guard(error, [&] { use(engine, "engine").engine->close(); });
}
void ouro_engine_release(ouro_engine* engine) { release(engine); }

ouro_status ouro_engine_info(const ouro_engine* engine, ouro_info* info, ouro_error** error) {
  return guard(error, [&] {
    const auto& loaded = *use(engine, "engine").engine;
    const auto& manifest = loaded.manifest();
    ouro_info value{};
    value.min_depth = manifest.depth.min;
    value.max_depth = manifest.depth.max;
    value.default_depth = manifest.depth.default_depth;
    value.vocab_size = manifest.model.vocab_size;
    value.hidden_size = manifest.model.hidden_size;
    value.max_positions = manifest.model.max_position_embeddings;
    value.can_choose_depth = manifest.depth.halting.has_value();
    value.can_chat = manifest.tokenizer.chat.has_value();
    value.backend = view(loaded.backend_name());
    value.reason = view(loaded.reason());
    value.precision = view(manifest.precision);
    write_struct(info, value, "info");
  });
}

ouro_status ouro_engine_warnings(ouro_engine* engine, ouro_result** warnings, ouro_error** error) {
  return guard(error, [&] {
    auto& loaded = *use(engine, "engine").engine;
    output(warnings);
    *warnings = pack_texts(loaded.take_warnings()).release();
  });
}

ouro_status ouro_tokenize(const ouro_engine* engine, ouro_text text, ouro_result** ids,
                          ouro_error** error) {
  return guard(error, [&] {
    const auto& loaded = *use(engine, "engine").engine;
    output(ids);
    *ids = pack_ids(loaded.tokenize(read_text(text))).release();
  });
}

ouro_status ouro_detokenize(const ouro_engine* engine, const int64_t* ids, size_t count,
                            ouro_result** text, ouro_error** error) {
  return guard(error, [&] {
    const auto& loaded = *use(engine, "engine").engine;
    if (ids == nullptr && count > 0) refuse("the ids are null", kGiveData);
    output(text);
    *text = pack_texts({loaded.detokenize(Tokens(ids, ids + count))}).release();
  });
}

ouro_status ouro_generate(ouro_engine* engine, const ouro_request* requests, size_t count,
                          ouro_cancelled cancelled, void* user, ouro_result** generations,
                          ouro_error** error) {
  return guard(error, [&] {
    const auto loaded = use(engine, "engine").engine;  // `cancelled` may release the handle
    output(generations);
    if (requests == nullptr && count > 0) refuse("the requests are null", kGiveData);
    std::vector<ouro::core::Asked> asked;
    const auto* place = reinterpret_cast<const std::byte*>(requests);
    for (std::size_t index = 0; index < count; ++index) {
      const auto* one = reinterpret_cast<const ouro_request*>(place);
      asked.push_back(read_request(one));
      place += one->size;  // as the program that made the array knows it
    }
    *generations = pack(loaded->generate(asked, read_cancelled(cancelled, user))).release();
  });
}

ouro_status ouro_logits(ouro_engine* engine, const ouro_prompt* prompt, int64_t depth,
                        ouro_result** logits, ouro_error** error) {
  return guard(error, [&] {
    auto& loaded = *use(engine, "engine").engine;
    output(logits);
    auto result = std::make_unique<ouro_result>();
    result->floats = loaded.logits(read_prompt(prompt), read_depth(depth, 0.0));
    result->columns = static_cast<std::size_t>(loaded.manifest().model.vocab_size);
    result->rows = result->floats.size() / result->columns;
    *logits = result.release();
  });
}

ouro_status ouro_stream_open(ouro_engine* engine, const ouro_request* request, ouro_stream** stream,
                             ouro_error** error) {
  return guard(error, [&] {
    output(stream);
    auto& loaded = use(engine, "engine").engine;
    ouro::core::Asked asked = read_request(request);
    const auto session = std::make_shared<ouro::core::Session>(loaded, asked.depth);
    give(stream, session->stream(std::move(asked.prompt), asked.options));
  });
}

ouro_status ouro_stream_next(ouro_stream* stream, ouro_piece* piece, int* more,
                             ouro_error** error) {
  return guard(error, [&] {
    ouro_stream& own = use(stream, "stream");
    output(more);
    check_struct(piece, "piece");
    const std::unique_lock<std::mutex> lock(own.busy, std::try_to_lock);
    if (!lock.owns_lock()) {
      throw ouro::core::engine_error("a stream serves one thread at a time", "open another stream");
    }
    const bool found = own.stream->next(own.piece);
    if (found) {
      ouro_piece value{};
      value.text = view(own.piece.text);
      value.token = own.piece.token.value_or(-1);
      value.finish = static_cast<ouro_finish>(own.piece.finish);
      value.depth = own.piece.depth;
      if (own.piece.logprob) {
        own.candidates = list_candidates(*own.piece.logprob);
        own.logprob = {own.piece.logprob->token, own.piece.logprob->logprob, own.candidates.data(),
                       own.candidates.size()};
        value.logprob = &own.logprob;
      }
      write_struct(piece, value, "piece");
    }
    *more = found ? 1 : 0;
  });
}

ouro_status ouro_stream_cancel(ouro_stream* stream, ouro_error** error) {
  return guard(error, [&] { use(stream, "stream").stream->cancel(); });
}
ouro_status ouro_stream_depth(const ouro_stream* stream, int64_t* depth, ouro_error** error) {
  return guard(error, [&] { output(depth) = use(stream, "stream").stream->depth(); });
}
void ouro_stream_release(ouro_stream* stream) { release(stream); }

ouro_status ouro_session_open(ouro_engine* engine, int64_t depth, double halt_threshold,
                              ouro_session** session, ouro_error** error) {
  return guard(error, [&] {
    output(session);
    give(session, std::make_shared<ouro::core::Session>(use(engine, "engine").engine,
                                                        read_depth(depth, halt_threshold)));
  });
}

ouro_status ouro_session_generate(ouro_session* session, const ouro_prompt* prompt,
                                  const ouro_options* options, ouro_cancelled cancelled, void* user,
                                  ouro_result** generation, ouro_error** error) {
  return guard(error, [&] {
    auto& own = *use(session, "session").session;
    output(generation);
    *generation = pack({own.generate(read_prompt(prompt), read_options(options),
                                     read_cancelled(cancelled, user))})
                      .release();
  });
}

ouro_status ouro_session_stream(ouro_session* session, const ouro_prompt* prompt,
                                const ouro_options* options, ouro_stream** stream,
                                ouro_error** error) {
  return guard(error, [&] {
    output(stream);
    auto& own = *use(session, "session").session;
    give(stream, own.stream(read_prompt(prompt), read_options(options)));
  });
}

ouro_status ouro_session_ids(const ouro_session* session, ouro_result** ids, ouro_error** error) {
  return guard(error, [&] {
    output(ids);
    *ids = pack_ids(use(session, "session").session->tokens()).release();
  });
}
ouro_status ouro_session_depth(const ouro_session* session, int64_t* depth, ouro_error** error) {
  return guard(error, [&] { output(depth) = use(session, "session").session->depth(); });
}
ouro_status ouro_session_reset(ouro_session* session, ouro_error** error) {
  return guard(error, [&] { use(session, "session").session->reset(); });
}
void ouro_session_release(ouro_session* session) { release(session); }
