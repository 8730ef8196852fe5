// Answers that fail: the session keeps what was given of them, as where a stream is dropped, and
// nothing of what was not.
//   failing BUNDLE
#include <cmath>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "engine.hpp"
#include "error.hpp"
#include "session.hpp"

using namespace ouro::core;  // NOLINT: a test

namespace {

using Messages = std::vector<Message>;
using Prompts = std::vector<Prompt>;

// How the second answer of a session ends after some pieces.
enum class End { kDropped, kFailed, kFailedWhole };

void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

// Tiny random models are sure of themselves: unlikely tokens are chosen, and their logits compared.
Options wild() {
  Options options;
  options.max_new_tokens = 8;
  options.temperature = 60.0;
  options.seed = 4;
  options.logprobs = 0;
  return options;
}

std::shared_ptr<Session> open_session(const std::shared_ptr<Engine>& engine) {
  Depth depth{2, false, std::nullopt};
  if (engine->manifest().depth.halting) depth = {std::nullopt, true, std::nullopt};
  return std::make_shared<Session>(engine, depth);
}

// Without pieces a dropped answer is never asked for.
std::shared_ptr<Session> answer_partly(const std::shared_ptr<Engine>& engine,
                                       const Prompts& prompts, std::size_t taken, End end) {
  auto session = open_session(engine);
  session->generate(prompts[0], wild());
  if (end == End::kDropped && taken == 0) return session;
  std::size_t asked = 0;
  const auto cancelled = [&asked, taken, end] {
    if (end != End::kDropped && asked++ == taken) throw std::logic_error("mine");
    return false;
  };
  const auto stream = session->stream(prompts[1], wild(), cancelled);
  Piece piece;
  bool caught = false;
  try {
    if (end == End::kFailedWhole) session->generate(prompts[1], wild(), cancelled);
    for (std::size_t count = 0; count < taken; ++count) require(stream->next(piece), "no piece");
    if (end == End::kFailed) stream->next(piece);
  } catch (const std::logic_error& error) {
    caught = std::string(error.what()) == "mine";
  }
  require(caught == (end != End::kDropped), "what a function throws does not come out");
  if (end == End::kFailed) require(!stream->next(piece), "a stream goes on after it failed");
  return session;
}

void compare(Session& failed, Session& expected, const Prompt& prompt) {
  require(failed.tokens() == expected.tokens(), "other tokens after a failure");
  require(failed.depth() == expected.depth(), "another depth after a failure");
  for (int turn = 0; turn < 2; ++turn) {
    const Generation one = failed.generate(prompt, wild()),
                     other = expected.generate(prompt, wild());
    require(one.tokens == other.tokens, "another answer after a failure");
    for (std::size_t place = 0; place < one.logprobs.size(); ++place) {
      const double difference = one.logprobs[place].logprob - other.logprobs[place].logprob;
      require(std::abs(difference) < 1e-2, "other logits after a failure");
    }
  }
  require(failed.tokens() == expected.tokens(), "other tokens two turns later");
}

// A session whose first answer fails is empty, takes either kind of prompt and chooses its depth.
void fail_first(const std::shared_ptr<Engine>& engine, const Prompt& first, const Prompt& second) {
  const auto session = open_session(engine), fresh = open_session(engine);
  bool caught = false;
  try {
    session->generate(first, wild(), []() -> bool { throw std::logic_error("mine"); });
  } catch (const std::logic_error&) {
    caught = true;
  }
  require(caught && session->tokens().empty(), "a first answer that failed left something");
  compare(*session, *fresh, second);
}

// A session holds a chat or plain text until it is reset.
void mix(const std::shared_ptr<Engine>& engine, const Prompt& first, const Prompt& second) {
  const auto session = open_session(engine);
  session->generate(first, wild());
  const Tokens held = session->tokens();
  const bool chat = std::holds_alternative<Messages>(first);
  std::string said;
  try {
    session->stream(second, wild());
  } catch (const Error& error) {
    said = error.what();
  }
  require(said == (chat ? "this session holds a chat, and the turn is plain text; make the turn a "
                          "chat too, or reset the session first"
                        : "this session holds plain text, and the turn is a chat; make the turn "
                          "plain text too, or reset the session first"),
          "another kind of prompt: " + said);
  require(session->tokens() == held, "a turn that was refused left something");
  session->reset();
  session->generate(second, wild());
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: failing BUNDLE\n";
    return 2;
  }
  try {
    const auto engine = Engine::open(argv[1], "cpu", 1);
    const Prompts plain = {Tokens{5, 6, 7, 8}, Tokens{9, 10}, Tokens{11, 12, 13}};
    const Prompts chat = {Messages{{"user", "Hello"}}, Messages{{"user", "And?"}},
                          Messages{{"user", "So?"}}};
    for (const Prompts& prompts : {plain, chat}) {
      for (const std::size_t taken : {0U, 3U}) {
        const auto dropped = answer_partly(engine, prompts, taken, End::kDropped);
        compare(*answer_partly(engine, prompts, taken, End::kFailed), *dropped, prompts[2]);
        const auto never = answer_partly(engine, prompts, 0, End::kDropped);
        compare(*answer_partly(engine, prompts, taken, End::kFailedWhole), *never, prompts[2]);
      }
    }
    fail_first(engine, chat[0], plain[1]);
    mix(engine, plain[0], chat[0]);
    mix(engine, chat[0], plain[0]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
  return 0;
}
