// Renders a compiled chat template. No Jinja.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.hpp"
#include "bundle/reader.hpp"

namespace ouro::core {

struct Message {
  std::string role, content;  // UTF-8
};

// The prompt of a conversation, exactly as the bundle's chat template renders it:
// 1. A message is a role that the spec takes and a text as content.
// 2. The roles follow `order`. "any": all do. "system_first": "system" is at most the first.
//    "alternating": after a first "system", or none: "user", "assistant", "user" and so on.
// 3. Messages with the content "" are taken out where their role, or the fold, has `skip_empty`.
// 4. The text begins with `begin`, and `default_system` unless a system message is now first.
// 5. With a `fold`, a first system message is taken out. If the first or last message that is
//    left, as `into` says, is the user's, its content gets a prefix: `fold.before`, the system
//    content stripped by `fold.strip`, `fold.after`.
// 6. Each message adds its role's `before`, its content stripped by `strip` (at its left, right or
//    both ends; the prefix with it if `joined`), and `after`, or if last `answer` with
//    `add_generation_prompt`, else `last`. Refused if that is absent or no message is left.
// Throws engine_error: a message or an order of messages that the spec does not take.
std::string render_compiled(const ChatSpec& spec, const std::vector<Message>& messages,
                            bool add_generation_prompt = true);

// A bundle's chat template, in its compiled form.
class ChatTemplate {
 public:
  // Takes it from the manifest; one that is absent or not compiled is refused when rendering.
  explicit ChatTemplate(const Bundle& bundle);

  // The prompt of a conversation, ending where the assistant's answer begins. Throws engine_error:
  // no template, one that could not be compiled, or what render_compiled refuses.
  std::string render(const std::vector<Message>& messages) const;

 private:
  std::optional<std::string> file_;
  std::optional<ChatSpec> spec_;
};

}  // namespace ouro::core
