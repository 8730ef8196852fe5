#include "text/tokenizer.hpp"

#include <limits>
#include <utility>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

const json kNothing;

const json& get(const json& object, const char* key) {
  const auto found = object.find(key);
  return found == object.end() ? kNothing : *found;
}

Id read_id(const json& value) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kNoId) {
    throw bundle_error("the id " + value.dump().substr(0, 40) + " is none");
  }
  return value.get<Id>();
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
    if (*before == ',') name += ")";
  }
  return name.substr(0, 200);
}

Error refuse(const std::string& part) {
  return engine_error("this engine does not read the bundle's tokenizer: its " + part +
                          " is of a kind that it lacks",
                      "give and take token ids");
}

// The two tokens of a merge: a list of both, or a text with a space between them.
std::pair<std::string_view, std::string_view> read_merge(const json& value) {
  if (value.is_array()) {
    if (value.size() != 2) throw bundle_error("a merge is not of two tokens");
    return {value[0].get_ref<const std::string&>(), value[1].get_ref<const std::string&>()};
  }
  const std::string_view text = value.get_ref<const std::string&>();
  const std::size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    throw bundle_error("a merge is not of two tokens");
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

Merges read_merges(const json& list, const Vocabulary& vocabulary) {
  const auto find = [&](std::string_view token) {
    const Id id = vocabulary.find(token);
    if (id != kNoId) return id;
    throw bundle_error("a merge has the token " + std::string(token.substr(0, 60)) +
                       ", which is not in the vocabulary");
  };
  const auto& lines = list.get_ref<const json::array_t&>();
  Merges merges(lines.size());
  std::uint32_t rank = 0;
  const bool listed = !lines.empty() && lines.front().is_array();
  for (const json& line : lines) {
    if (line.is_array() != listed) throw bundle_error("its merges are of two forms");
    // A line of a merges.txt that says its version.
    if (!listed && line.get_ref<const std::string&>().rfind("#version", 0) == 0) continue;
    const auto [first, second] = read_merge(line);
    const Id left = find(first), right = find(second);
    merges.set(left, right, {rank++, find(std::string(first).append(second))});
  }
  return merges;
}

}  // namespace

Tokenizer::Tokenizer(const std::string& text) {
  try {
    read(json::parse(text));
  } catch (const json::exception& error) {
    throw bundle_error(error.what());
  }
}

void Tokenizer::read(const json& root) {
  if (!root.is_object()) throw bundle_error("it is not an object");
  if (const json& version = get(root, "version"); !version.is_null() && version != "1.0") {
    throw bundle_error("its version is " + version.dump().substr(0, 40) + ", allowed: \"1.0\"");
  }
  normalizer_ = Normalizer::read(get(root, "normalizer"));
  splitter_ = Splitter::read(get(root, "pre_tokenizer"));
  decoder_ = TokenDecoder::read(get(root, "decoder"));
  // What is prepended at the beginning depends on what was prepended before.
  if (normalizer_ && splitter_ && splitter_->minds_opening() && !normalizer_->empty()) {
    splitter_.reset();
  }
  if (!normalizer_) strange_encoding_ = name_part("normalizer", root["normalizer"]);
  if (normalizer_ && !splitter_) strange_encoding_ = name_part("pre_tokenizer", root["pre_tokenizer"]);
  if (!decoder_) strange_decoder_ = name_part("decoder", root["decoder"]);
  read_model(root.at("model"));
  if (const json& list = get(root, "added_tokens"); !list.is_null()) read_added(list);
  if (decoder_) unsettled_ = decoder_->unsettled([this](const std::string& one) { return find(one); });
}

void Tokenizer::read_model(const json& model) {
  const std::string type = model.value("type", "BPE");
  const json& tokens = model.at("vocab");
  vocabulary_.reserve(tokens.size());
  if (type == "Unigram") {
    Id id = 0;
    for (const json& one : tokens.get_ref<const json::array_t&>()) {
      vocabulary_.add(one.at(0).get_ref<const std::string&>(), id++);
    }
  } else {
    for (const auto& [token, id] : tokens.get_ref<const json::object_t&>()) {
      vocabulary_.add(token, read_id(id));
    }
  }
  const json& dropout = get(model, "dropout");
  bool known = type == "BPE" && (dropout.is_null() || dropout.get<double>() == 0.0);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const json& value = get(model, key);
    known = known && (value.is_null() || value.get_ref<const std::string&>().empty());
  }
  if (!known && strange_encoding_.empty()) strange_encoding_ = name_part("model", model);
  if (type != "BPE") return;
  BpeOptions options;
  if (const json& unknown = get(model, "unk_token"); !unknown.is_null()) options.unk_token = unknown;
  options.fuse_unk = read_flag(model, "fuse_unk");
  options.byte_fallback = read_flag(model, "byte_fallback");
  options.ignore_merges = read_flag(model, "ignore_merges");
  if (!known) return;
  model_.emplace(vocabulary_, read_merges(model.at("merges"), vocabulary_), std::move(options),
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
    throw engine_error("the text has " + std::to_string(text.size()) + " bytes", "give a shorter one");
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

const AddedToken* Tokenizer::added(Token token) const {
  return token >= 0 && token < Token{kNoId} ? added_.find(static_cast<Id>(token)) : nullptr;
}

std::optional<std::string_view> Tokenizer::token_text(Token token) const {
  if (token < 0 || token >= Token{kNoId}) return std::nullopt;
  if (const AddedToken* found = added(token)) return found->written;
  return vocabulary_.token(static_cast<Id>(token));
}

Id Tokenizer::find(const std::string& token) const {
  const Id id = added_.find(token);
  return id != kNoId ? id : vocabulary_.find(token);
}

}  // namespace ouro::core
