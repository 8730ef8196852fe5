#include "text/tokenizer_json.hpp"

#include <nlohmann/json.hpp>

#include "error.hpp"

namespace ouro::core {
namespace {

using nlohmann::json;

constexpr std::size_t kDeepest = 127;  // as far as the library reads on which Python stands

// Takes the parser's events: most become values, those of the two large parts do not.
class Reader final : public nlohmann::json_sax<json> {
 public:
  Reader(Vocabulary& vocabulary, MergeList& merges) : vocabulary_(vocabulary), merges_(merges) {}

  json take() { return std::move(root_); }

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(json::number_integer_t value) override { return put(value); }
  bool number_float(json::number_float_t value, const std::string&) override { return put(value); }
  bool binary(json::binary_t&) override { return put(nullptr); }

  bool number_unsigned(json::number_unsigned_t value) override {
    if (place_ != Place::kVocabulary) return put(value);
    vocabulary_.add(key_, read_id(value));
    return true;
  }

  bool string(std::string& value) override {
    if (place_ == Place::kMerges) {
      add_line(value);
    } else if (place_ == Place::kMerge) {
      if (half_ > 1) fail();
      std::string& half = half_ == 0 ? merges_.back().first : merges_.back().second;
      half = value;
      ++half_;
    } else {
      put(value);
    }
    return true;
  }

  bool key(std::string& value) override {
    key_ = value;
    return true;
  }

  bool start_object(std::size_t) override {
    open(json::object());
    if (in_model("vocab")) {
      place_ = Place::kVocabulary;
      vocabulary_ = Vocabulary();
    }
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ == Place::kMerges) {
      place_ = Place::kMerge;
      half_ = 0;
      listed_ = true;
      merges_.emplace_back();
      return true;
    }
    open(json::array());
    if (in_model("merges")) {
      place_ = Place::kMerges;
      listed_ = texts_ = false;
      merges_.clear();
    }
    return true;
  }

  bool end_object() override {
    place_ = Place::kValue;
    stack_.pop_back();
    return true;
  }

  bool end_array() override {
    if (place_ == Place::kMerge) {
      if (half_ != 2) fail();
      place_ = Place::kMerges;
      return true;
    }
    if (listed_ && texts_) fail();
    return end_object();
  }

  bool parse_error(std::size_t, const std::string&, const json::exception& error) override {
    throw bundle_error(error.what());
  }

 private:
  enum class Place { kValue, kVocabulary, kMerges, kMerge };

  [[noreturn]] static void fail() { throw bundle_error("its merges are not of two tokens each"); }

  bool in_model(const char* key) const {
    return stack_.size() == 3 && key_ == key && stack_[1] == model_;
  }

  // A line of a merges.txt: two tokens with a space between them.
  void add_line(const std::string& line) {
    texts_ = true;
    if (line.rfind("#version", 0) == 0) return;
    const std::size_t space = line.find(' ');
    if (space == std::string::npos || line.find(' ', space + 1) != std::string::npos) fail();
    merges_.emplace_back(line.substr(0, space), line.substr(space + 1));
  }

  json* place(json value) {
    if (stack_.empty()) return &(root_ = std::move(value));
    json& parent = *stack_.back();
    if (parent.is_array()) return &parent.emplace_back(std::move(value));
    json& member = parent[key_];
    member = std::move(value);
    if (stack_.size() == 1 && key_ == "model") model_ = &member;
    return &member;
  }

  bool put(json value) {
    if (place_ == Place::kVocabulary) read_id(value);
    if (place_ == Place::kMerges || place_ == Place::kMerge) fail();
    place(std::move(value));
    return true;
  }

  void open(json value) {
    if (place_ == Place::kVocabulary) read_id(value);
    if (place_ == Place::kMerges || place_ == Place::kMerge) fail();
    if (stack_.size() >= kDeepest) throw bundle_error("it is nested too deep");
    stack_.push_back(place(std::move(value)));
  }

  Vocabulary& vocabulary_;
  MergeList& merges_;
  json root_;
  std::vector<json*> stack_;     // the values that are open
  const json* model_ = nullptr;  // the latest of that key
  std::string key_;
  Place place_ = Place::kValue;
  int half_ = 0;                         // of a merge
  bool listed_ = false, texts_ = false;  // forms of merges seen
};

}  // namespace

json read_tokenizer_json(const std::string& text, Vocabulary& vocabulary, MergeList& merges) {
  // The library would pass over a byte order mark.
  if (text.compare(0, 3, "\xEF\xBB\xBF") == 0) throw bundle_error("it begins with no JSON");
  Reader reader(vocabulary, merges);
  json::sax_parse(text, &reader);
  return reader.take();
}

Id read_id(const json& value) {
  if (!value.is_number_unsigned() || value.get<std::uint64_t>() >= kNoId) {
    throw bundle_error("the id " + value.dump().substr(0, 40) + " is none");
  }
  return value.get<Id>();
}

}  // namespace ouro::core
