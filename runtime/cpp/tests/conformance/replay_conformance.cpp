// Asks what tests/conformance recorded of the Python engine again, through the public C++
// interface.
//
//   replay_conformance FILE [BUNDLE] [BACKEND] [THREADS]
//
// Prints a line for every answer that differs from the recorded one, and for every request that
// this interface has no words for, which is left out. Exit status 1 where an answer differs.
// Several threads share one engine. An empty BUNDLE is the recorded one.

#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <future>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "answers.hpp"
#include "ouro/ouro.hpp"

namespace {

using conformance::Json;

// A request that can't be asked here, and why.
class LeftOut : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// ---- what is asked

ouro::Prompt prompt_of(const Json& given, bool chat) {
  if (given.is_string() && chat) {
    return std::vector<ouro::Message>{{"user", given.get<std::string>()}};
  }
  if (given.is_string()) return given.get<std::string>();
  if (!chat) return given.get<ouro::Ids>();
  std::vector<ouro::Message> messages;
  for (const Json& one : given) messages.push_back({one.at("role"), one.at("content")});
  return messages;
}

bool is_batch(const Json& prompt) {
  return prompt.is_array() && !prompt.empty() && (prompt[0].is_array() || prompt[0].is_string());
}

template <class Value>
void set(std::optional<Value>& target, const Json& options, const char* name) {
  if (options.contains(name)) target = options.at(name).get<Value>();
}

ouro::Options options_of(const Json& request, std::size_t row) {
  const Json given = request.value("options", Json::object());
  ouro::Options options;
  options.max_new_tokens = given.value("max_new_tokens", options.max_new_tokens);
  set(options.temperature, given, "temperature");
  set(options.top_k, given, "top_k");
  set(options.top_p, given, "top_p");
  set(options.min_p, given, "min_p");
  set(options.repetition_penalty, given, "repetition_penalty");
  set(options.logprobs, given, "logprobs");
  options.stop = given.value("stop", options.stop);
  if (given.contains("seed")) {
    const Json& seed = given.at("seed");
    options.seed = (seed.is_array() ? seed.at(row) : seed).get<std::uint64_t>();
  }
  return options;
}

ouro::Depth depth_of(const Json& request, std::size_t row) {
  const double threshold = request.value("halt_threshold", 0.0);
  if (request.contains("halt_threshold") && threshold == 0) {
    throw LeftOut("a threshold of 0 stands for the bundle's");
  }
  if (!request.contains("depth")) return {};
  const Json& whole = request.at("depth");
  if (whole == "auto") return ouro::Depth::automatic(threshold);
  ouro::Depth depth((whole.is_array() ? whole.at(row) : whole).get<std::int64_t>());
  if (depth.steps == OURO_DEPTH_DEFAULT || depth.steps == OURO_DEPTH_AUTO) {
    throw LeftOut("this number stands for another depth");
  }
  depth.halt_threshold = threshold;
  return depth;
}

// True from the time on that it was asked as often as `cancel` says.
ouro::Cancelled cancel_of(const Json& request) {
  if (!request.contains("cancel")) return {};
  const auto left = std::make_shared<std::int64_t>(request.at("cancel").get<std::int64_t>());
  return [left] { return (*left)-- <= 0; };
}

// ---- what is answered

Json error_json(const ouro::Error& error, const Json& request) {
  if (error.status() != OURO_FAILED)
    throw std::runtime_error(std::string("fault: ") + error.what());
  Json said{{"code", static_cast<int>(error.code())}};
  if (!request.value("code", false)) {
    said["problem"] = error.problem();
    said["cure"] = error.cure();
  }
  return {{"error", said}};
}

// The pieces of a stream, cancelled or left where the request says.
Json pieces_json(ouro::Stream stream, const Json& request) {
  Json pieces = Json::array();
  const std::size_t never = SIZE_MAX;
  const std::size_t cancel = request.value("cancel", never), take = request.value("take", never);
  while (pieces.size() < take) {
    if (pieces.size() == cancel) stream.cancel();
    const std::optional<ouro::Piece> piece = stream.next();
    if (!piece) break;
    pieces.push_back(
        {{"text", piece->text},
         {"token", piece->token ? Json(*piece->token) : Json()},
         {"finish_reason", conformance::finish_json(piece->finish)},
         {"depth", piece->depth},
         {"logprob", piece->logprob ? conformance::logprob_json(*piece->logprob) : Json()}});
  }
  return pieces;
}

// ---- how it is asked

Json generate(ouro::Engine& engine, const Json& request) {
  const Json& prompt = request.at("prompt");
  const bool chat = request.value("chat", false), batch = is_batch(prompt);
  if (!batch) {
    return conformance::generation_json(engine.generate(
        prompt_of(prompt, chat), depth_of(request, 0), options_of(request, 0), cancel_of(request)));
  }
  std::vector<ouro::Request> rows;
  for (std::size_t row = 0; row < prompt.size(); ++row) {
    rows.push_back(
        {prompt_of(prompt[row], chat), depth_of(request, row), options_of(request, row)});
  }
  Json generations = Json::array();
  for (const auto& one : engine.generate(rows, cancel_of(request))) {
    generations.push_back(conformance::generation_json(one));
  }
  return generations;
}

Json logits(ouro::Engine& engine, const Json& request) {
  const auto one = [&](const Json& prompt, std::size_t row) -> Json {
    const ouro::Logits found = engine.logits(prompt_of(prompt, false), depth_of(request, row));
    return {{"shape", {found.rows, found.columns}}, {"float32", conformance::base64(found.values)}};
  };
  const Json& ids = request.at("ids");
  if (!is_batch(ids)) return one(ids, 0);
  Json rows = Json::array();
  for (std::size_t row = 0; row < ids.size(); ++row) rows.push_back(one(ids[row], row));
  return rows;
}

Json tokenize(ouro::Engine& engine, const Json& request) {
  if (!request.contains("bytes")) return engine.tokenize(request.at("text"));
  const std::string hexadecimal = request.at("bytes");
  std::string text;
  for (std::size_t place = 0; place + 1 < hexadecimal.size(); place += 2) {
    text += static_cast<char>(std::stoi(hexadecimal.substr(place, 2), nullptr, 16));
  }
  return engine.tokenize(text);
}

Json session(ouro::Engine& engine, const Json& request) {
  ouro::Session session = engine.session(depth_of(request, 0));
  Json answers = Json::array();
  for (const Json& turn : request.at("turns")) {
    Json said;
    if (turn.value("reset", false)) {
      session.reset();
    } else {
      try {
        const ouro::Prompt prompt = prompt_of(turn.at("prompt"), turn.value("chat", false));
        said = pieces_json(session.stream(prompt, options_of(turn, 0)), turn);
      } catch (const ouro::Error& error) {
        said = error_json(error, turn);
      }
    }
    answers.push_back({{"said", said}, {"tokens", session.ids()}, {"depth", session.depth()}});
  }
  return answers;
}

Json open(const std::string& bundle, const Json& request) {
  ouro::OpenOptions options;
  options.backend = request.value("backend", "cpu");
  options.threads = request.value("threads", options.threads);
  options.accuracy_level = request.value("accuracy_level", options.accuracy_level);
  if (request.contains("threads") && options.threads == 0) {
    throw LeftOut("0 threads stand for the default");
  }
  const bool elsewhere = request.contains("folder");
  const std::string folder =
      elsewhere ? bundle + "/" + request.at("folder").get<std::string>() : bundle;
  return ouro::Engine(folder, options).info().backend;
}

Json closed(const std::string& bundle, const Json& request) {
  ouro::Engine engine(bundle, {"cpu", 1, 0});
  engine.close();
  return generate(engine, request);
}

Json ask(ouro::Engine& engine, const std::string& bundle, const Json& request) {
  const std::string call = request.at("call");
  if (call == "generate" || call == "closed") {
    const std::size_t rows = is_batch(request.at("prompt")) ? request.at("prompt").size() : 1;
    const Json& seed = request.value("options", Json::object()).value("seed", Json());
    const Json depth = request.value("depth", Json());
    if ((seed.is_array() && seed.size() != rows) || (depth.is_array() && depth.size() != rows)) {
      throw LeftOut("every row has its own");
    }
  }
  try {
    if (call == "generate") return generate(engine, request);
    if (call == "stream") {
      const ouro::Prompt prompt = prompt_of(request.at("prompt"), request.value("chat", false));
      return pieces_json(engine.stream(prompt, depth_of(request, 0), options_of(request, 0)),
                         request);
    }
    if (call == "logits") return logits(engine, request);
    if (call == "tokenize") return tokenize(engine, request);
    if (call == "detokenize") return engine.detokenize(request.at("ids").get<ouro::Ids>());
    if (call == "session") return session(engine, request);
    if (call == "open") return open(bundle, request);
    if (call == "closed") return closed(bundle, request);
  } catch (const ouro::Error& error) {
    return error_json(error, request);
  }
  throw std::runtime_error("there is no call " + call);
}

struct Count {
  std::size_t asked = 0, wrong = 0, left_out = 0;
};

// Asks every `stride`-th request from `first` on; adds what there is to say of them to `said`.
Count ask_some(ouro::Engine& engine, const std::string& bundle, const Json& requests,
               std::size_t first, std::size_t stride, std::string& said) {
  Count count;
  for (std::size_t place = first; place < requests.size(); place += stride) {
    const Json& request = requests[place];
    const std::string name = request.at("name");
    std::vector<std::string> lines;
    try {
      const Json found = ask(engine, bundle, request);
      const bool alone = request.at("call") == "logits" && is_batch(request.at("ids"));
      conformance::compare(found, request.at("answer"), "answer", lines,
                           alone ? conformance::kAloneL2 : conformance::kRelativeL2);
      ++count.asked;
    } catch (const LeftOut& reason) {
      ++count.left_out;
      said += "left out " + name + ": " + reason.what() + "\n";
    } catch (const std::exception& error) {
      ++count.asked;
      lines.emplace_back(error.what());
    }
    count.wrong += lines.empty() ? 0 : 1;
    for (const std::string& line : lines) said.append("wrong " + name + ": ").append(line + "\n");
  }
  return count;
}

int replay(const std::string& file, const std::string& folder, const std::string& backend,
           std::size_t threads) {
  std::ifstream opened(file);
  const Json recording = Json::parse(opened);
  const std::string bundle = folder.empty() ? recording.at("bundle").get<std::string>() : folder;
  ouro::Engine engine(bundle, {backend, 1, 0});
  std::vector<std::string> said(threads);
  std::vector<std::future<Count>> pool;
  for (std::size_t one = 0; one < threads; ++one) {
    pool.push_back(std::async(std::launch::async, [&, one] {
      return ask_some(engine, bundle, recording.at("requests"), one, threads, said[one]);
    }));
  }
  Count whole;
  for (std::size_t one = 0; one < threads; ++one) {
    const Count count = pool[one].get();
    whole.asked += count.asked;
    whole.wrong += count.wrong;
    whole.left_out += count.left_out;
    std::fputs(said[one].c_str(), stdout);
  }
  std::printf("%zu requests asked, %zu answered otherwise, %zu left out\n", whole.asked,
              whole.wrong, whole.left_out);
  return whole.wrong == 0 && whole.asked > 0 ? 0 : 1;
}

}  // namespace

int main(int count, char** words) {
  if (count < 2 || count > 5) {
    std::fprintf(stderr, "usage: replay_conformance FILE [BUNDLE] [BACKEND] [THREADS]\n");
    return 2;
  }
  try {
    const std::size_t threads = count > 4 ? std::stoul(words[4]) : 1;
    return replay(words[1], count > 2 ? words[2] : "", count > 3 ? words[3] : "cpu", threads);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
}
