// What programs do to a library.
//   abuse BUNDLE SCENARIO
#include <atomic>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

#include "api/scenarios.hpp"
#include "ouro/ouro.hpp"

namespace {

using ouro::Engine;

// No destructor throws.
static_assert(std::is_nothrow_destructible_v<Engine> &&
              std::is_nothrow_destructible_v<ouro::Session> &&
              std::is_nothrow_destructible_v<ouro::Stream>);

const ouro::Ids kPrompt = {5, 6, 7, 8};

// Older than ONNX Runtime, which is loaded with the first engine: they go after its own statics.
std::unique_ptr<Engine> last_engine;
std::unique_ptr<ouro::Stream> last_stream;

// The error that a call must give.
ouro::Error fails(const std::function<void()>& body, const std::string& what) {
  try {
    body();
  } catch (const ouro::Error& error) {
    return error;
  }
  throw std::runtime_error(what + " did not fail");
}

ouro::Options options(std::int64_t tokens) {
  ouro::Options chosen;
  chosen.max_new_tokens = tokens;
  return chosen;
}

ouro::OpenOptions one_thread() {
  ouro::OpenOptions open;
  open.backend = "cpu";
  open.threads = 1;
  return open;
}

void reopen(const std::string& bundle) {
  ouro::Ids first;
  for (int round = 0; round < 50; ++round) {
    Engine engine(bundle, one_thread());
    const ouro::Ids ids = engine.generate(kPrompt, 2, options(4)).ids;
    if (round == 0) first = ids;
    require(ids == first, "an engine opened again gives other tokens");
    engine.close();
  }
}

void outlive(const std::string& bundle) {
  auto engine = std::make_unique<Engine>(bundle, one_thread());
  const ouro::Ids expected = engine->generate(kPrompt, 2, options(8)).ids;
  ouro::Stream stream = engine->stream(kPrompt, 2, options(8));
  ouro::Session session = engine->session(2);
  ouro::Ids ids = {*stream.next()->token};
  engine.reset();
  while (const auto piece = stream.next()) ids.push_back(*piece->token);
  require(ids == expected, "a stream gives other tokens once its engine is gone");
  require(session.generate(kPrompt, options(8)).ids == expected, "a session does");
}

void closing(const std::string& bundle) {
  Engine engine(bundle, one_thread());
  ouro::Stream stream = engine.stream(kPrompt, 2, options(16));
  require(stream.next().has_value(), "no first piece");
  std::thread closer([&engine] { engine.close(); });
  std::size_t pieces = 1;
  while (stream.next()) ++pieces;
  closer.join();
  require(pieces > 1, "a stream did not end with its engine closed");
  const ouro::Error error =
      fails([&] { engine.generate(kPrompt, 2, options(1)); }, "a closed engine");
  require(error.code() == OURO_CODE_ENGINE, "the code of a closed engine");
  require(error.problem() == "the engine is closed", error.problem());
  engine.close();  // again
  engine.tokenize("a");
}

// Nothing is shut down: a program may end with an engine open, a stream in its middle, and another
// engine that nobody releases.
void leaving(const std::string& bundle) {
  ouro::OpenOptions open = one_thread();
  open.threads = 2;  // ONNX Runtime has a thread of its own then
  last_engine = std::make_unique<Engine>(bundle, open);
  last_stream = std::make_unique<ouro::Stream>(last_engine->stream(kPrompt, 2, options(16)));
  require(last_stream->next().has_value(), "no first piece");
  static const Engine* const forgotten = new Engine(bundle, open);
  require(!forgotten->tokenize("a").empty(), "no tokens");
}

void threads(const std::string& bundle) {
  Engine engine(bundle, one_thread());
  std::vector<ouro::Ids> expected;
  for (std::int64_t depth = 1; depth <= 4; ++depth) {
    expected.push_back(engine.generate(kPrompt, depth, options(12)).ids);
  }
  std::atomic<int> wrong{0};
  std::vector<std::thread> workers;
  for (std::size_t worker = 0; worker < 8; ++worker) {
    workers.emplace_back([&, worker] {
      try {
        for (std::size_t round = 0; round < 6; ++round) {
          const std::size_t depth = (worker + round) % 4;
          ouro::Ids ids;
          const auto steps = static_cast<std::int64_t>(depth) + 1;
          for (const ouro::Piece& piece : engine.stream(kPrompt, steps, options(12))) {
            ids.push_back(*piece.token);
          }
          if (ids != expected[depth]) ++wrong;
          engine.tokenize("some text " + std::to_string(round));
          engine.detokenize(ids);
          engine.warnings();
        }
      } catch (...) {
        ++wrong;
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  require(wrong == 0, std::to_string(wrong) + " of the threads' answers are wrong");
}

void busy(const std::string& bundle) {
  Engine engine(bundle, one_thread());
  ouro::Session session = engine.session(2);
  {
    ouro::Stream first = session.stream(kPrompt, options(8));
    ouro::Stream second = session.stream(kPrompt, options(8));
    require(first.next().has_value(), "no first piece");
    const ouro::Error error = fails([&] { second.next(); }, "a busy session");
    require(error.problem() == "a session serves one request at a time", error.problem());
    fails([&] { session.reset(); }, "resetting a busy session");
  }
  // A stream that was dropped leaves its session ready.
  require(session.generate(kPrompt, options(2)).ids.size() == 2,
          "a session after a dropped stream");
  // Two threads on one session: each call gives an answer or an error, nothing else.
  std::atomic<int> other{0};
  std::vector<std::thread> workers;
  for (int worker = 0; worker < 2; ++worker) {
    workers.emplace_back([&] {
      for (int round = 0; round < 8; ++round) {
        try {
          session.generate(kPrompt, options(1));
        } catch (const ouro::Error& error) {
          if (error.code() != OURO_CODE_ENGINE) ++other;
        } catch (...) {
          ++other;
        }
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
  require(other == 0, "two threads on one session gave something else than an answer or an error");
}

void callbacks(const std::string& bundle) {
  Engine engine(bundle, one_thread());
  int asked = 0;
  const auto stopping = [&asked] { return ++asked > 3; };
  const ouro::Generation cut = engine.generate(kPrompt, 2, options(16), stopping);
  require(cut.finish == ouro::Finish::kCancelled && cut.ids.size() == 3, "cancelling a generation");
  bool caught = false;
  try {
    engine.generate(kPrompt, 2, options(16), []() -> bool { throw std::logic_error("mine"); });
  } catch (const std::logic_error& error) {
    caught = std::string(error.what()) == "mine";
  }
  require(caught, "what a callback throws does not come out");
  ouro::Session session = engine.session(2);
  session.generate(kPrompt, options(4));
  const ouro::Ids before = session.ids();
  for (const int after : {0, 2}) {
    caught = false;
    try {
      session.generate(kPrompt, options(16), [left = after]() mutable -> bool {
        if (left-- == 0) throw std::logic_error("mine");
        return false;
      });
    } catch (const std::logic_error& error) {
      caught = std::string(error.what()) == "mine";
    }
    require(caught && session.ids() == before, "a callback that throws leaves something behind");
  }
  // The handle may be released while it answers.
  ouro_engine* released = nullptr;
  require(ouro_engine_open(bundle.c_str(), nullptr, &released, nullptr) == OURO_OK, "opening");
  ouro_prompt prompt;
  ouro_prompt_init(&prompt);
  prompt.text = {"a", 1};
  ouro_request request;
  ouro_request_init(&request);
  request.prompt = &prompt;
  const ouro_cancelled releasing = [](void* user) {
    auto*& handle = *static_cast<ouro_engine**>(user);
    ouro_engine_release(handle);
    handle = nullptr;
    return 0;
  };
  ouro_result* result = nullptr;
  require(ouro_generate(released, &request, 1, releasing, static_cast<void*>(&released), &result,
                        nullptr) == OURO_OK,
          "releasing an engine in a callback");
  ouro_result_release(result);
  std::size_t seen = 0;
  engine.stream(kPrompt, 2, options(16)).each([&seen](const ouro::Piece&) { return ++seen < 5; });
  require(seen == 5, "a callback that asks to stop");
  ouro::Stream stream = engine.stream(kPrompt, 2, options(16));
  stream.next();
  stream.cancel();
  require(stream.next()->finish == ouro::Finish::kCancelled, "cancelling a stream");
  require(!stream.next(), "a stream goes on behind its end");
}

void requests(const std::string& bundle) {
  Engine engine(bundle, one_thread());
  const ouro::Info info = engine.info();
  const auto code = [](const ouro::Error& error) {
    require(error.status() == OURO_FAILED && error.code() == OURO_CODE_ENGINE, error.what());
    require(!error.problem().empty() && !error.cure().empty(), error.what());
  };
  code(fails([&] { engine.generate(kPrompt, info.max_depth + 1); }, "a depth too large"));
  code(fails([&] { engine.generate(kPrompt, -3); }, "a depth below 0"));
  code(fails([&] { engine.generate(ouro::Ids{}); }, "an empty prompt"));
  code(fails([&] { engine.generate(std::string()); }, "an empty text"));
  code(fails([&] { engine.generate(std::vector<ouro::Message>{}); }, "an empty chat"));
  code(fails([&] { engine.generate(ouro::Ids{info.vocab_size}); }, "an id outside"));
  code(fails([&] { engine.generate(ouro::Ids{-1}); }, "an id below 0"));
  code(fails([&] { engine.detokenize({info.vocab_size}); }, "text of an id outside"));
  const auto positions = static_cast<std::size_t>(info.max_positions);
  code(fails([&] { engine.generate(ouro::Ids(positions + 1, 1)); }, "a prompt too long"));
  code(fails([&] { engine.generate(kPrompt, 1, options(info.max_positions)); }, "too many tokens"));
  code(fails([&] { engine.generate(kPrompt, 1, options(INT64_MAX)); }, "far too many tokens"));
  code(fails([&] { engine.generate(kPrompt, 1, options(0)); }, "no tokens"));
  code(fails([&] { engine.generate(std::vector<ouro::Request>{}); }, "no requests"));
  ouro::Options odd = options(1);
  odd.temperature = -1;
  code(fails([&] { engine.generate(kPrompt, 1, odd); }, "a temperature below 0"));
  odd = options(1);
  odd.stop = {""};
  code(fails([&] { engine.generate(kPrompt, 1, odd); }, "an empty stop string"));
  if (!info.can_choose_depth) {
    code(fails([&] { engine.generate(kPrompt, ouro::Depth::automatic()); }, "a missing halter"));
  }
  ouro::OpenOptions open = one_thread();
  open.backend = "tpu";
  code(fails([&] { Engine other(bundle, open); }, "an unknown backend"));
  open.backend = "trt";
  code(fails([&] { Engine other(bundle, open); }, "a backend that is not built in"));
  open = one_thread();
  open.threads = 5000;
  code(fails([&] { Engine other(bundle, open); }, "too many threads"));
}

}  // namespace

int main(int argc, char** argv) {
  return run_scenario({{"reopen", reopen},
                       {"outlive", outlive},
                       {"closing", closing},
                       {"threads", threads},
                       {"leaving", leaving},
                       {"busy", busy},
                       {"callbacks", callbacks},
                       {"requests", requests}},
                      argc, argv);
}
