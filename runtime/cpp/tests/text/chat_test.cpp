// Compiled chat templates: the conversations of the vectors.
#include <catch2/catch.hpp>

#include <fstream>
#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/chat.hpp"

using namespace ouro::core;  // NOLINT: a test

namespace {

std::optional<std::string> read_text(const nlohmann::json& value) {
  return value.is_null() ? std::nullopt : std::optional(value.get<std::string>());
}

ChatSpec read_spec(const nlohmann::json& value) {
  ChatSpec spec;
  spec.begin = value.at("begin");
  spec.default_system = value.at("default_system");
  spec.order = value.at("order");
  for (const auto& [name, role] : value.at("roles").items()) {
    spec.roles.emplace_back(name, RoleSpec{role.at("before"), role.at("strip"), role.at("after"),
                                           read_text(role.at("last")), read_text(role.at("answer")),
                                           role.at("skip_empty")});
  }
  if (const auto& fold = value.at("fold"); !fold.is_null()) {
    spec.fold = FoldSpec{fold.at("into"),  fold.at("before"),     fold.at("strip"),
                         fold.at("after"), fold.at("skip_empty"), fold.at("joined")};
  }
  return spec;
}

nlohmann::json read_vectors() {
  std::ifstream file(OURO_SOURCE_DIR "/tests/vectors/chat.json");
  return nlohmann::json::parse(file);
}

std::string refusal(const ChatSpec& spec, const std::vector<Message>& messages,
                    bool prompt = true) {
  try {
    render_compiled(spec, messages, prompt);
  } catch (const Error& error) {
    CHECK(error.code() == Code::kEngine);
    return error.problem();
  }
  return "none";
}

}  // namespace

TEST_CASE("conversations are rendered and refused as in the vectors") {
  int rendered = 0, refused = 0;
  const auto vectors = read_vectors();
  for (const auto& [name, entry] : vectors.at("specs").items()) {
    const ChatSpec spec = read_spec(entry.at("spec"));
    for (const auto& one : entry.at("cases")) {
      INFO(name << " " << one.dump());
      std::vector<Message> messages;
      for (const auto& message : one.at("messages")) {
        messages.push_back({message.at("role"), message.at("content")});
      }
      const bool prompt = one.at("add_generation_prompt");
      if (one.at("text").is_null()) {
        CHECK(refusal(spec, messages, prompt) != "none");
        ++refused;
      } else {
        CHECK(render_compiled(spec, messages, prompt) == one.at("text").get<std::string>());
        ++rendered;
      }
    }
  }
  CHECK(rendered > 100);
  CHECK(refused > 50);
}

TEST_CASE("refusals say which message, and what is allowed") {
  const ChatSpec spec = read_spec(read_vectors().at("specs").at("ChatML").at("spec"));
  CHECK(refusal(spec, {{"User", "Hi"}}) ==
        "the compiled chat template: message 1 is of the role 'User', allowed: system, user, "
        "assistant");
  CHECK(refusal(spec, {{"user", "Hi"}, {"it's", "Hi"}}).find("message 2 is of the role \"it's\"") !=
        std::string::npos);
  CHECK(refusal(spec, {}).find("message 0 is the last") != std::string::npos);
}

TEST_CASE("content that is not UTF-8 is rendered with marks") {
  const ChatSpec spec = read_spec(read_vectors().at("specs").at("ChatML").at("spec"));
  CHECK(render_compiled(spec, {{"user", "a\xFF"}}).find("a\xEF\xBF\xBD<|im_end|>") !=
        std::string::npos);
}

TEST_CASE("a template that is absent or was not compiled is refused") {
  Manifest manifest;
  CHECK_THROWS_WITH(ChatTemplate(Bundle("x", manifest)).render({{"user", "Hi"}}),
                    Catch::Contains("no chat template"));
  manifest.tokenizer.chat_template = "chat_template.jinja";
  CHECK_THROWS_WITH(ChatTemplate(Bundle("x", manifest)).render({{"user", "Hi"}}),
                    Catch::Contains("could not be compiled"));
  manifest.tokenizer.chat = read_spec(read_vectors().at("specs").at("ChatML").at("spec"));
  CHECK(ChatTemplate(Bundle("x", manifest)).render({{"user", "Hi"}}) ==
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}
