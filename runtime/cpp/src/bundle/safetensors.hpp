// A checked reader of safetensors files, for recorded cases: nothing in the header is believed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace ouro::core {

// A tensor of a file: numpy's name of its type ("float32", "int64", "bool", "bfloat16"), its shape,
// and its bytes in row-major order, little-endian and not aligned (copy them out with memcpy). They
// are the Safetensors' own and live as long as it does.
struct StoredTensor {
  std::string dtype;
  std::vector<std::int64_t> shape;
  const char* data = nullptr;
  std::size_t bytes = 0;
};

// A file, whole in memory. It can't be copied or moved, for its tensors point into it.
class Safetensors {
 public:
  // Throws bundle_error "{file} cannot be read: ..." for anything that is not such a file.
  explicit Safetensors(const std::filesystem::path& file);
  // From the bytes of a file; `name` stands in errors.
  Safetensors(std::string bytes, const std::string& name);
  Safetensors(const Safetensors&) = delete;
  Safetensors& operator=(const Safetensors&) = delete;

  const std::map<std::string, StoredTensor>& tensors() const noexcept { return tensors_; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

 private:
  void read();

  std::string content_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace ouro::core
