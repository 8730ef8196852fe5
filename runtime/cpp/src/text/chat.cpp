#include "text/chat.hpp"

#include <algorithm>
#include <string_view>
#include <utility>

#include "bundle/json.hpp"
#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

// Unicode's White_Space and U+001C..U+001F, as Python's str.strip has it.
bool is_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

std::string strip(std::string_view text, const std::string& sides) {
  if (sides == "left" || sides == "both") {
    while (!text.empty() && is_space(character_at(text, 0).code)) {
      text.remove_prefix(character_at(text, 0).size);
    }
  }
  if (sides == "right" || sides == "both") {
    while (!text.empty()) {
      const std::size_t last = start_before(text, text.size());
      if (!is_space(character_at(text, last).code)) break;
      text = text.substr(0, last);
    }
  }
  return std::string(text);
}

bool takes(const ChatSpec& spec, const std::string& name) {
  return find(spec.roles, name) || (name == "system" && spec.fold);
}

Error refuse(std::size_t number, const std::string& problem, const std::string& allowed) {
  return engine_error("the compiled chat template: message " + std::to_string(number) + " " +
                          problem + ", allowed: " + allowed,
                      "change the conversation, or render it with chat_template.jinja");
}

void check_roles(const ChatSpec& spec, const std::vector<Message>& talk) {
  for (std::size_t place = 0; place < talk.size(); ++place) {
    const std::string& name = talk[place].role;
    if (takes(spec, name)) continue;
    std::string allowed;
    for (const char* role : {"system", "user", "assistant"}) {
      if (takes(spec, role)) allowed += (allowed.empty() ? "" : ", ") + std::string(role);
    }
    throw refuse(place + 1, "is of the role " + shorten(repr(name)), allowed);
  }
}

void check_order(const ChatSpec& spec, const std::vector<Message>& talk) {
  const std::size_t start = !talk.empty() && talk[0].role == "system" ? 1 : 0;
  for (std::size_t place = start; place < talk.size(); ++place) {
    const std::string& name = talk[place].role;
    const std::string due = (place - start) % 2 ? "assistant" : "user";
    const bool late = spec.order == "system_first" && name == "system";
    if (late || (spec.order == "alternating" && name != due)) {
      throw refuse(place + 1, "is of the role " + repr(name),
                   late ? "a system message only as the first" : "here the role " + repr(due));
    }
  }
}

}  // namespace

std::string render_compiled(const ChatSpec& spec, const std::vector<Message>& messages,
                            bool add_generation_prompt) {
  check_roles(spec, messages);
  check_order(spec, messages);
  const std::optional<FoldSpec>& fold = spec.fold;
  std::vector<Message> talk;
  for (const Message& message : messages) {
    const RoleSpec* role = find(spec.roles, message.role);
    const bool skips = role && role->skip_empty;
    const bool folds = message.role == "system" && fold && fold->skip_empty;
    if (!message.content.empty() || !(skips || folds)) {
      talk.push_back({to_utf8(message.role), to_utf8(message.content)});
    }
  }
  const bool opened = !talk.empty() && talk[0].role == "system";
  std::string prefix;
  std::size_t target = messages.size();  // of the prefix: none
  if (opened && fold) {
    prefix = fold->before + strip(talk[0].content, fold->strip) + fold->after;
    talk.erase(talk.begin());
    if (!talk.empty()) target = fold->into == "first" ? 0 : talk.size() - 1;
  }
  std::string text = spec.begin + (opened ? "" : spec.default_system);
  const std::optional<std::string>* end = nullptr;
  for (std::size_t place = 0; place < talk.size(); ++place) {
    const auto& [name, content] = talk[place];
    const RoleSpec& role = *find(spec.roles, name);
    const std::string put = place == target && name == "user" ? prefix : "";
    const bool whole = fold && fold->joined;
    end = add_generation_prompt ? &role.answer : &role.last;
    text += role.before;
    text += whole ? strip(put + content, role.strip) : put + strip(content, role.strip);
    text += place + 1 < talk.size() ? role.after : end->value_or("");
  }
  if (!end || !*end) {
    throw refuse(messages.size(), "is the last", "a chat that ends with the user's message");
  }
  return text;
}

ChatTemplate::ChatTemplate(const Bundle& bundle)
    : file_(bundle.manifest().tokenizer.chat_template), spec_(bundle.manifest().tokenizer.chat) {}

std::string ChatTemplate::render(const std::vector<Message>& messages) const {
  if (!file_ && !spec_)
    throw engine_error("this bundle has no chat template", "leave out chat / --chat");
  if (!spec_) {
    throw engine_error("this bundle's chat template could not be compiled",
                       "render " + *file_ + " with a library for Jinja, and give its text");
  }
  return render_compiled(*spec_, messages);
}

}  // namespace ouro::core
