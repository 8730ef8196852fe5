// A checked reader of safetensors files, for recorded cases: nothing in the header is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace ouro::core {

// A tensor of a file: numpy's name of its type ("float32", "float16", "bfloat16", "int64", "bool"),
// its shape, and its bytes in row-major order, which live as long as the Safetensors they came from
// and are aligned as the file has them (copy them out with memcpy).
struct StoredTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

// A file read whole into memory. Moving one keeps its tensors where they are.
class Safetensors {
 public:
  // Throws bundle_error "{file} cannot be read: ..." for anything that is not such a file.
  explicit Safetensors(const std::filesystem::path& file);
  // From the bytes of a file, for tests and fuzzing; `name` stands in errors.
  Safetensors(std::string bytes, const std::string& name);

  const std::map<std::string, StoredTensor>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

 private:
  void read_header(std::string_view header, std::size_t start);

  std::vector<char> content_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace ouro::core
