#include "bundle/external_data.hpp"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bundle/contract.hpp"
#include "bundle/json.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

namespace fs = std::filesystem;

// Number and content of a field that has a length.
struct Field {
  std::uint64_t number;
  std::string_view content;
};

// A number of up to 70 bits, as protobuf writes it: its lower 35 and its upper ones.
struct Varint {
  std::uint64_t low = 0, high = 0;
};

Varint read_varint(std::string_view message, std::size_t& place) {
  Varint value;
  for (int group = 0; group < 10; ++group) {
    if (place >= message.size()) throw std::invalid_argument("it ends in the middle of a number");
    const auto byte = static_cast<unsigned char>(message[place++]);
    (group < 5 ? value.low : value.high) |= std::uint64_t{byte & 127u} << (group % 5 * 7);
    if (byte < 128) return value;
  }
  throw std::invalid_argument("a number has more than 10 bytes");
}

// The number of the field that a tag is of: all but the three lowest bits, in decimal.
std::string show_number(const Varint& tag) {
  std::uint64_t low = tag.low >> 3, high = tag.high;  // of 32 and of 35 bits
  std::string digits;
  do {
    const std::uint64_t rest = (high % 10) << 32 | low;
    high /= 10;
    low = rest / 10;
    digits.insert(digits.begin(), static_cast<char>('0' + rest % 10));
  } while (low > 0 || high > 0);
  return digits;
}

// The fields of a message that have a length. Throws std::invalid_argument: it is cut off, or holds
// what protobuf does not write.
std::vector<Field> read_fields(std::string_view message) {
  enum Wire { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };
  std::vector<Field> fields;
  for (std::size_t place = 0; place < message.size();) {
    const Varint tag = read_varint(message, place);
    const std::uint64_t number = tag.low >> 3, wire = tag.low & 7;
    if (number == 0 || number >> 29 != 0 || tag.high != 0) {
      throw std::invalid_argument(say("a field has the number {}", show_number(tag)));
    }
    Varint size;
    if (wire == kVarint) read_varint(message, place);
    if (wire == kFixed64) size.low = 8;
    if (wire == kFixed32) size.low = 4;
    if (wire == kBytes) size = read_varint(message, place);
    if (wire > kBytes && wire != kFixed32) {
      throw std::invalid_argument(say("a field has the wire type {}", wire));
    }
    if (size.high != 0 || size.low > message.size() - place) {
      throw std::invalid_argument("it ends in the middle of a field");
    }
    if (wire == kBytes) fields.push_back({number, message.substr(place, size.low)});
    place += size.low;
  }
  return fields;
}

// The message that a field of a message holds; nothing where it leads to no external tensor.
std::optional<std::string_view> lead_of(std::string_view message, std::uint64_t field) {
  for (const contract::Lead& one : contract::kLeads) {
    if (one.message == message && static_cast<std::uint64_t>(one.field) == field) return one.holds;
  }
  return std::nullopt;
}

// ONNX Runtime opens no data file that is known by another name too, and does not say so.
void check_single(const fs::path& data) {
  const std::string& name = data.native();
  const std::string cure =
      say("put a copy in its place: cp {} {}.copy && mv {}.copy {}", name, name, name, name);
  std::error_code error;
  if (fs::is_symlink(fs::symlink_status(data, error))) {
    throw bundle_error(say("{} is a symbolic link, which ONNX Runtime does not open", name), cure);
  }
  const std::uintmax_t links = fs::hard_link_count(data, error);
  if (links <= 1 || error) return;
  throw bundle_error(
      say("{} has {} hard links (cp -al and some backups make them), and ONNX Runtime "
          "opens no weights that have another name",
          name, links),
      cure);
}

// What a name that stands in a file of the bundle means, in Python's plainest form.
std::string join(const std::string& file, const std::string& name) {
  fs::path joined = fs::path(name).root_directory();
  for (const fs::path& part : fs::path(file).parent_path() / name) {
    if (!part.empty() && part != "." && part != "/") joined /= part;
  }
  return joined.empty() ? "." : joined.native();
}

}  // namespace

std::set<std::string> external_files(std::string_view graph) {
  constexpr std::uint64_t kKey = 1, kValue = 2;
  std::set<std::string> found;
  std::vector<std::pair<std::string_view, std::string_view>> waiting = {{"Model", graph}};
  while (!waiting.empty()) {  // not recursion: a file may nest as deep as it likes
    const auto [kind, message] = waiting.back();
    waiting.pop_back();
    std::string_view key, value;
    for (const Field& field : read_fields(message)) {
      if (kind == "Entry") {
        if (field.number == kKey) key = field.content;
        if (field.number == kValue) value = field.content;
      } else if (const auto holds = lead_of(kind, field.number)) {
        waiting.emplace_back(*holds, field.content);
      }
    }
    if (key != "location") continue;
    check_utf8(value);  // two names that decode alike are two files to ONNX Runtime
    found.insert(std::string(value));
  }
  return found;
}

void check_external_data(const Bundle& bundle) {
  const GraphSpec& spec = bundle.manifest().graphs.onnx;
  const fs::path file = bundle.file(spec.file);
  std::set<std::string> named, odd;
  const std::set<std::string> listed(spec.data.begin(), spec.data.end());
  try {
    for (const std::string& name : external_files(read_file(file))) {
      named.insert(join(spec.file, name));
    }
  } catch (const std::invalid_argument& error) {
    throw bundle_error(say("cannot load {}, no ONNX file: {}", file.native(), error.what()),
                       "export it again");
  }
  std::set_symmetric_difference(named.begin(), named.end(), listed.begin(), listed.end(),
                                std::inserter(odd, odd.begin()));
  if (!odd.empty()) {
    const std::string& name = *odd.begin();
    throw bundle_error(say("cannot load {}: the data file {} is in the graph: {}, in the "
                           "manifest: {}",
                           file.native(), repr(name), named.count(name) ? "True" : "False",
                           listed.count(name) ? "True" : "False"),
                       "export it again");
  }
  for (const std::string& name : spec.data) check_single(bundle.folder() / name);
}

}  // namespace ouro::core
