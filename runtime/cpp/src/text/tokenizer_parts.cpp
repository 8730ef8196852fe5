#include "text/tokenizer_parts.hpp"

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "error.hpp"
#include "text/unicode.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

constexpr int kMostNested = 100;  // sequences within each other

// What a field holds; one that is `Maybe` may be missing, `OrNull` null too.
enum class Field {
  kFlag,
  kFlagMaybe,
  kFlagOrNull,
  kText,
  kCharacter,
  kCount,
  kCountMaybe,
  kCountOrNull,
  kPattern,
  kBehavior,
  kBehaviorMaybe,
  kSchemeMaybe,
  kList,
  kObject,
};

struct Kind {
  const char *part, *type;
  std::vector<std::pair<const char*, Field>> fields;
};

const std::vector<Kind>& kinds() {
  using F = Field;
  using Fields = std::vector<std::pair<const char*, Field>>;
  static const Fields bytes = {
      {"add_prefix_space", F::kFlag}, {"trim_offsets", F::kFlag}, {"use_regex", F::kFlagMaybe}};
  static const Fields mark = {{"replacement", F::kCharacter},
                              {"add_prefix_space", F::kFlagOrNull},
                              {"prepend_scheme", F::kSchemeMaybe},
                              {"split", F::kFlagOrNull}};
  static const Fields replace = {{"pattern", F::kPattern}, {"content", F::kText}};
  static const std::vector<Kind> known = {
      {"normalizer", "Sequence", {{"normalizers", F::kList}}},
      {"normalizer", "NFC", {}},
      {"normalizer", "NFD", {}},
      {"normalizer", "NFKC", {}},
      {"normalizer", "NFKD", {}},
      {"normalizer", "Nmt", {}},
      {"normalizer", "Lowercase", {}},
      {"normalizer", "StripAccents", {}},
      {"normalizer", "ByteLevel", {}},
      {"normalizer", "Replace", replace},
      {"normalizer", "Prepend", {{"prepend", F::kText}}},
      {"normalizer", "Precompiled", {{"precompiled_charsmap", F::kText}}},
      {"normalizer", "Strip", {{"strip_left", F::kFlag}, {"strip_right", F::kFlag}}},
      {"normalizer",
       "BertNormalizer",
       {{"clean_text", F::kFlag},
        {"handle_chinese_chars", F::kFlag},
        {"strip_accents", F::kFlagOrNull},
        {"lowercase", F::kFlag}}},
      {"pre_tokenizer", "Sequence", {{"pretokenizers", F::kList}}},
      {"pre_tokenizer", "ByteLevel", bytes},
      {"pre_tokenizer", "Metaspace", mark},
      {"pre_tokenizer", "BertPreTokenizer", {}},
      {"pre_tokenizer", "Whitespace", {}},
      {"pre_tokenizer", "WhitespaceSplit", {}},
      {"pre_tokenizer", "UnicodeScripts", {}},
      {"pre_tokenizer", "CharDelimiterSplit", {{"delimiter", F::kCharacter}}},
      {"pre_tokenizer", "Punctuation", {{"behavior", F::kBehaviorMaybe}}},
      {"pre_tokenizer", "Digits", {{"individual_digits", F::kFlag}}},
      {"pre_tokenizer", "FixedLength", {{"length", F::kCountMaybe}}},
      {"pre_tokenizer",
       "Split",
       {{"pattern", F::kPattern}, {"behavior", F::kBehavior}, {"invert", F::kFlag}}},
      {"decoder", "Sequence", {{"decoders", F::kList}}},
      {"decoder", "ByteLevel", bytes},
      {"decoder", "Metaspace", mark},
      {"decoder", "Replace", replace},
      {"decoder", "ByteFallback", {}},
      {"decoder", "Fuse", {}},
      {"decoder", "Strip", {{"content", F::kCharacter}, {"start", F::kCount}, {"stop", F::kCount}}},
      {"decoder", "WordPiece", {{"prefix", F::kText}, {"cleanup", F::kFlag}}},
      {"decoder", "BPEDecoder", {{"suffix", F::kText}}},
      {"decoder",
       "CTC",
       {{"pad_token", F::kText}, {"word_delimiter_token", F::kText}, {"cleanup", F::kFlag}}},
      {"model", "BPE", {{"vocab", F::kObject}, {"merges", F::kList}}},
      {"model", "WordLevel", {{"vocab", F::kObject}, {"unk_token", F::kText}}},
      {"model",
       "WordPiece",
       {{"vocab", F::kObject},
        {"unk_token", F::kText},
        {"continuing_subword_prefix", F::kText},
        {"max_input_chars_per_word", F::kCount}}},
      {"model",
       "Unigram",
       {{"vocab", F::kList}, {"unk_id", F::kCountOrNull}, {"byte_fallback", F::kFlagMaybe}}},
  };
  return known;
}

bool among(const json& value, const std::vector<const char*>& allowed) {
  return std::any_of(allowed.begin(), allowed.end(), [&](const char* one) { return value == one; });
}

// One text, or one regular expression.
bool is_pattern(const json& value) {
  return value.is_object() && value.size() == 1 &&
         (value.begin().key() == "String" || value.begin().key() == "Regex") &&
         value.begin().value().is_string();
}

bool is_character(const json& value) {
  if (!value.is_string()) return false;
  const auto& text = value.get_ref<const std::string&>();
  return !text.empty() && character_at(text, 0).size == text.size();
}

bool may_be_missing(Field field) {
  return field == Field::kFlagMaybe || field == Field::kFlagOrNull || field == Field::kCountMaybe ||
         field == Field::kCountOrNull || field == Field::kBehaviorMaybe ||
         field == Field::kSchemeMaybe;
}

bool fits(Field field, const json& value) {
  switch (field) {
    case Field::kFlagOrNull:
      return value.is_boolean() || value.is_null();
    case Field::kFlag:
    case Field::kFlagMaybe:
      return value.is_boolean();
    case Field::kText:
      return value.is_string();
    case Field::kCharacter:
      return is_character(value);
    case Field::kCountOrNull:
      return value.is_number_unsigned() || value.is_null();
    case Field::kCount:
    case Field::kCountMaybe:
      return value.is_number_unsigned();
    case Field::kPattern:
      return is_pattern(value);
    case Field::kBehavior:
    case Field::kBehaviorMaybe:
      return among(value,
                   {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"});
    case Field::kSchemeMaybe:
      return among(value, {"always", "first", "never"});
    case Field::kList:
      return value.is_array();
    case Field::kObject:
      return value.is_object();
  }
  return false;
}

// Checks a part's own fields; returns the key of the parts within it, or null.
const char* check_fields(const std::string& part, const std::string& type, const json& value) {
  const auto kind = std::find_if(kinds().begin(), kinds().end(), [&](const Kind& one) {
    return part == one.part && type == one.type;
  });
  const std::string named = "its " + part + " " + type.substr(0, 60);
  if (kind == kinds().end()) throw bundle_error(named + " is of no kind that there is");
  for (const auto& [name, field] : kind->fields) {
    const auto found = value.find(name);
    if (found == value.end() ? !may_be_missing(field) : !fits(field, *found)) {
      throw bundle_error(named + (found == value.end() ? " lacks its " : " has a wrong ") + name);
    }
  }
  if (type == "Metaspace" && value.value("add_prefix_space", json()) == false &&
      value.value("prepend_scheme", "always") != "never") {
    throw bundle_error(named + " has an add_prefix_space that its prepend_scheme contradicts");
  }
  return type == "Sequence" ? kind->fields[0].first : nullptr;
}

void check_within(const char* part, const json& value, int depth) {
  const auto type = value.is_object() ? value.find("type") : value.end();
  if (!value.is_object() || type == value.end() || !type->is_string()) {
    throw bundle_error(std::string("its ") + part + " has no type");
  }
  const char* const inner = check_fields(part, *type, value);
  if (inner == nullptr) return;
  if (depth > kMostNested) throw bundle_error("its sequences nest too deep");
  for (const json& one : value.at(inner)) check_within(part, one, depth + 1);
}

}  // namespace

void check_part(const char* part, const json& value) {
  if (!value.is_null()) check_within(part, value, 0);
}

void check_model(const json& model) {
  if (!model.is_object()) throw bundle_error("its model is not an object");
  const auto type = model.find("type");
  if (type != model.end() && !type->is_string()) throw bundle_error("its model has no type");
  const std::string name = type == model.end() ? "BPE" : type->get<std::string>();
  check_fields("model", name, model);
  if (name == "Unigram") {
    for (const json& one : model.at("vocab")) {
      if (!one.is_array() || one.size() != 2 || !one[0].is_string() || !one[1].is_number()) {
        throw bundle_error("its vocabulary is not of tokens, each with a number");
      }
    }
  }
}

}  // namespace ouro::core
