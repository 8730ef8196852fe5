#include "text/tokenizer.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/tokenizer_json.hpp"
#include "text/tokenizer_parts.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

constexpr const char* kKeys[] = {"version",        "truncation", "padding",
                                 "added_tokens",   "normalizer", "pre_tokenizer",
                                 "post_processor", "decoder",    "model"};

const json& get(const json& object, const char* key) {
  static const json nothing;
  const auto found = object.find(key);
  return found == object.end() ? nothing : *found;
}

bool read_flag(const json& object, const char* key) {
  const json& value = get(object, key);
  return !value.is_null() && value.get<bool>();
}

// A part's name: its type, and those of a sequence's parts.
std::string name_part(const char* part, const json& value) {
  std::string name = std::string(part) + " " + value.value("type", "of no type");
  for (const char* key : {"normalizers", "pretokenizers", "decoders"}) {
    const char* before = "(";
    for (const json& one : get(value, key)) {
      name += before + one.value("type", std::string("?"));
      before = ", ";
    }
    if (*before == ',') name += ')';
  }
  return name.substr(0, 200);
}

Error refuse(const std::string& part) {
  return engine_error("this engine does not read the bundle's tokenizer: its " + part +
                          " is of a kind that it lacks",
                      "give and take token ids");
}

// `prefix`: the bytes that a token has in front where it goes on a word, which a merge takes out.
Merges make_merges(const MergeList& list, const Vocabulary& vocabulary, std::size_t prefix) {
  const auto find = [&](const std::string& token) {
    const Id id = vocabulary.find(token);
    if (id != kNoId) return id;
    throw bundle_error("a merge has the token " + token + ", which is not in the vocabulary");
  };
  Merges merges(list.size());
  std::uint32_t rank = 0;
  for (const auto& [first, second] : list) {
    const Id left = find(first), right = find(second);
    if (prefix > second.size() || (prefix < second.size() && continues(second[prefix]))) {
      throw bundle_error("a merge has the token " + second + ", which has no prefix to take out");
    }
    merges.set(left, right, {rank++, find(first + second.substr(prefix))});
  }
  return merges;
}

}  // namespace

Tokenizer::Tokenizer(const std::string& text) {
  try {
    MergeList merges;
    read(read_tokenizer_json(text, vocabulary_, merges), merges);
  } catch (const json::exception& error) {
    throw bundle_error(error.what());
  }
}

void Tokenizer::read(const json& root, const MergeList& merges) {
  if (!root.is_object()) throw bundle_error("it is not an object");
  for (const auto& [key, value] : root.items()) {
    if (std::find(std::begin(kKeys), std::end(kKeys), key) == std::end(kKeys)) {
      throw bundle_error("it has the unknown key " + key.substr(0, 60));
    }
    if (key == "version" && value != "1.0") {
      throw bundle_error("its version is " + value.dump().substr(0, 40) + ", allowed: \"1.0\"");
    }
  }
  for (const char* part : {"normalizer", "pre_tokenizer", "decoder"}) {
    check_part(part, get(root, part));
  }
  check_model(root.at("model"));
  normalizer_ = Normalizer::read(get(root, "normalizer"));
  splitter_ = Splitter::read(get(root, "pre_tokenizer"));
  decoder_ = TokenDecoder::read(get(root, "decoder"));
  // What is prepended at the beginning depends on what was prepended before.
  if (normalizer_ && splitter_ && splitter_->minds_opening() && !normalizer_->empty()) {
    splitter_.reset();
  }
  if (!normalizer_) strange_encoding_ = name_part("normalizer", root["normalizer"]);
  if (normalizer_ && !splitter_)
    strange_encoding_ = name_part("pre_tokenizer", root["pre_tokenizer"]);
  if (!decoder_) strange_decoder_ = name_part("decoder", root["decoder"]);
  read_model(root.at("model"), merges);
  if (root.count("added_tokens")) read_added(root["added_tokens"]);
  if (decoder_)
    unsettled_ = decoder_->unsettled([this](const std::string& one) { return find(one); });
}

void Tokenizer::read_model(const json& model, const MergeList& merges) {
  const std::string type = model.value("type", "BPE");
  if (type == "Unigram") {
    Id id = 0;
    for (const json& one : model.at("vocab").get_ref<const json::array_t&>()) {
      vocabulary_.add(one.at(0).get_ref<const std::string&>(), id++);
    }
  }
  // Dropout leaves out merges at random while a model is trained: here it is checked, no more.
  if (const json& dropout = get(model, "dropout"); type == "BPE" && !dropout.is_null()) {
    const auto share = dropout.get<double>();
    if (!(share > -1 && share < 2) || !(static_cast<float>(share) >= 0) ||
        static_cast<float>(share) > 1) {
      throw bundle_error("its dropout is " + dropout.dump() + ", allowed: 0..1");
    }
  }
  bool known = type == "BPE";
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = get(model, key);
    known = known && (value.is_null() || value.get_ref<const std::string&>().empty());
  }
  if (!known && strange_encoding_.empty()) strange_encoding_ = name_part("model", model);
  if (type != "BPE") return;
  BpeOptions options;
  if (const json& unknown = get(model, "unk_token"); !unknown.is_null())
    options.unk_token = unknown;
  options.fuse_unk = read_flag(model, "fuse_unk");
  options.byte_fallback = read_flag(model, "byte_fallback");
  options.ignore_merges = read_flag(model, "ignore_merges");
  const json& before = get(model, "continuing_subword_prefix");
  Merges made = make_merges(merges, vocabulary_,
                            before.is_null() ? 0 : before.get_ref<const std::string&>().size());
  if (!known) return;
  model_.emplace(vocabulary_, std::move(made), std::move(options),
                 splitter_ && splitter_->byte_level());
}

void Tokenizer::read_added(const json& list) {
  for (const json& one : list.get_ref<const json::array_t&>()) {
    read_id(one.at("id"));
    AddedToken token;
    token.content = one.at("content");
    token.single_word = one.at("single_word");
    token.lstrip = one.at("lstrip");
    token.rstrip = one.at("rstrip");
    token.normalized = one.at("normalized");
    token.special = one.at("special");
    // How it is written, and so what it decodes to, is the normalizer's affair.
    if (token.normalized && !normalizer_) strange_decoder_ = strange_encoding_;
    const bool changes = token.normalized && normalizer_ && !normalizer_->empty();
    token.written = changes ? normalizer_->apply(token.content) : token.content;
    const Id known = vocabulary_.find(token.content);
    added_.add(std::move(token), known, vocabulary_.size());
  }
  added_.finish();
}

Tokens Tokenizer::encode(std::string_view text) const {
  if (!encodes()) throw refuse(strange_encoding_);
  if (text.size() > std::numeric_limits<std::uint32_t>::max() / 8) {
    throw engine_error("the text has " + std::to_string(text.size()) + " bytes",
                       "give a shorter one");
  }
  std::vector<Part> parts, inner;
  std::vector<std::string_view> words;
  std::vector<Id> ids;
  std::string normal, changed;
  added_.split(text, false, parts);
  for (const Part& part : parts) {
    if (part.id != kNoId) {
      ids.push_back(part.id);
      continue;
    }
    std::string_view rest = part.text;
    if (!normalizer_->empty()) rest = normal = normalizer_->apply(part.text);
    inner.clear();
    added_.split(rest, true, inner);
    for (const Part& one : inner) {
      if (one.id != kNoId) {
        ids.push_back(one.id);
        continue;
      }
      words.clear();
      splitter_->split(one.text, one.text.data() == text.data(), changed, words);
      for (const std::string_view word : words) model_->encode(word, ids);
    }
  }
  return Tokens(ids.begin(), ids.end());
}

std::string Tokenizer::decode(const Tokens& ids, bool skip_special) const {
  if (!decodes()) throw refuse(strange_decoder_);
  std::vector<std::string> tokens;
  tokens.reserve(ids.size());
  for (const Token id : ids) {
    const std::optional<std::string_view> text = token_text(id);
    if (!text) continue;
    tokens.emplace_back(*text);
    if (skip_special && added_.is_special(tokens.back())) tokens.pop_back();
  }
  return decoder_->decode(std::move(tokens));
}

std::optional<std::string> Tokenizer::special(Token token) const {
  const std::optional<std::string_view> text = token_text(token);
  if (!text || !added_.stays_special(std::string(*text))) return std::nullopt;
  return std::string(*text);
}

std::optional<std::string_view> Tokenizer::token_text(Token token) const {
  if (token < 0 || token >= Token{kNoId}) return std::nullopt;
  const Id id = static_cast<Id>(token);
  if (const AddedToken* found = added_.find(id)) return found->written;
  return vocabulary_.token(id);
}

Id Tokenizer::find(const std::string& token) const {
  const Id id = added_.find(token);
  return id != kNoId ? id : vocabulary_.find(token);
}

}  // namespace ouro::core
