#include "bundle/safetensors.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "bundle/json.hpp"
#include "bundle/reader.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

constexpr std::size_t kSizeBytes = 8;               // of the header's size, at the file's beginning
constexpr std::uint64_t kMostHeader = 100'000'000;  // as the safetensors package has it

struct StoredType {
  const char *name, *dtype;
  std::size_t bytes;
};
constexpr StoredType kTypes[] = {
    {"BOOL", "bool", 1},     {"U8", "uint8", 1},   {"I8", "int8", 1},     {"F16", "float16", 2},
    {"BF16", "bfloat16", 2}, {"I16", "int16", 2},  {"U16", "uint16", 2},  {"F32", "float32", 4},
    {"I32", "int32", 4},     {"U32", "uint32", 4}, {"F64", "float64", 8}, {"I64", "int64", 8},
    {"U64", "uint64", 8},
};

[[noreturn]] void refuse(const std::string& problem) { throw std::invalid_argument(problem); }

const std::string& read_text(const Json& value, const std::string& where) {
  if (value.get<std::string>() == nullptr) refuse(say("{} is no text", where));
  return *value.get<std::string>();
}

std::vector<std::int64_t> read_sizes(const Json* list, const std::string& where) {
  if (list == nullptr || list->get<Json::List>() == nullptr) refuse(say("{} is no list", where));
  std::vector<std::int64_t> sizes;
  for (const Json& one : *list->get<Json::List>()) {
    const auto* size = one.get<std::int64_t>();
    if (size == nullptr || *size < 0) refuse(say("{} holds {}, no size", where, shorten(one)));
    sizes.push_back(*size);
  }
  return sizes;
}

// Reads one entry of the header; offsets count from `start` of the content.
StoredTensor read_entry(const Json& entry, const std::string& name, std::string_view data) {
  const Json* dtype = entry.find("dtype");
  const std::string wanted = dtype ? read_text(*dtype, say("the type of {}", name)) : "";
  const auto* type = std::find_if(std::begin(kTypes), std::end(kTypes),
                                  [&](const StoredType& one) { return wanted == one.name; });
  if (type == std::end(kTypes)) refuse(say("{} has the type {}", name, repr(wanted)));
  StoredTensor tensor{type->dtype, read_sizes(entry.find("shape"), say("the shape of {}", name)),
                      nullptr, type->bytes};
  for (const std::int64_t size : tensor.shape) {
    const auto factor = static_cast<std::size_t>(size);
    if (factor != 0 && tensor.bytes > std::numeric_limits<std::size_t>::max() / factor) {
      refuse(say("{} is larger than any memory", name));
    }
    tensor.bytes *= factor;
  }
  const auto offsets = read_sizes(entry.find("data_offsets"), say("the place of {}", name));
  if (offsets.size() != 2 || offsets[0] > offsets[1] ||
      static_cast<std::uint64_t>(offsets[1]) > data.size() ||
      static_cast<std::uint64_t>(offsets[1] - offsets[0]) != tensor.bytes) {
    refuse(say("the place of {} is not one of {} bytes in the file", name, tensor.bytes));
  }
  tensor.data = data.data() + offsets[0];
  return tensor;
}

}  // namespace

Safetensors::Safetensors(const std::filesystem::path& file)
    : Safetensors(read_file(file), file.native()) {}

Safetensors::Safetensors(std::string bytes, const std::string& name) : content_(std::move(bytes)) {
  try {
    read();
  } catch (const std::invalid_argument& error) {
    throw bundle_error(say("{} cannot be read: {}", name, error.what()), kCopyOrExport);
  }
}

void Safetensors::read() {
  if (content_.size() < kSizeBytes) refuse("it is too short for a header");
  std::uint64_t size = 0;
  for (std::size_t i = kSizeBytes; i-- > 0;)
    size = size << 8 | static_cast<unsigned char>(content_[i]);
  if (size > kMostHeader) refuse("its header is too large");
  if (size > content_.size() - kSizeBytes) refuse("its header ends behind the file");
  const std::string_view header(content_.data() + kSizeBytes, size);
  const std::string_view data = std::string_view(content_).substr(kSizeBytes + size);
  if (header.substr(0, 1) != "{" || header.find('\0') != header.npos) {
    refuse("its header is no JSON object");
  }
  check_utf8(header);
  const Json parsed = read_json(header);
  std::vector<std::pair<std::size_t, std::size_t>> places;
  for (const auto& [name, entry] : *parsed.get<Json::Object>()) {
    check_utf8(name);
    if (name != "__metadata__") {
      const StoredTensor& tensor = tensors_[name] = read_entry(entry, name, data);
      places.emplace_back(tensor.data - data.data(), tensor.bytes);
      continue;
    }
    if (entry.is_null()) continue;
    if (entry.get<Json::Object>() == nullptr) refuse("its metadata are no object");
    for (const auto& [key, value] : *entry.get<Json::Object>()) {
      check_utf8(metadata_[key] = read_text(value, say("the metadata {}", key)));
    }
  }
  std::sort(places.begin(), places.end());
  std::size_t end = 0;
  for (const auto& [start, bytes] : places) {
    if (start != end) refuse("its tensors overlap, or do not fill it");
    end += bytes;
  }
  if (end != data.size()) refuse("its tensors do not fill it");
}

}  // namespace ouro::core
