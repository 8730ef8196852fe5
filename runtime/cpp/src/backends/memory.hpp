// Where the tensors of a batch lie: in the host's memory here, on a GPU in backends/cuda.hpp.
// The cache and the decoder only allocate, copy slots and read through Memory.
// Port of runtime/backends/memory.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace ouro::core {

using Shape = std::vector<std::int64_t>;

// Element types of the graph's tensors, in the order of contract::kElementTypes.
enum class DType { kFloat32, kFloat16, kBFloat16, kInt64 };

std::size_t item_bytes(DType dtype);
std::string_view dtype_name(DType dtype);
// Throws bundle_error for a name that is none.
DType parse_dtype(std::string_view name);

// How many elements a shape has. Throws std::bad_alloc where they are more than can be counted.
std::size_t count_elements(const Shape& shape);

// A tensor without gaps in some memory, which it shares with its parts and other shapes.
struct Buffer {
  std::shared_ptr<void> owner;
  std::byte* data = nullptr;  // an address of the device where the memory is a GPU's
  Shape shape;
  DType dtype = DType::kFloat32;

  // Throws std::bad_alloc where the shape is larger than any memory.
  std::size_t bytes() const;
  // One part on axis 0, that axis gone.
  Buffer part(std::size_t index) const;
  // The first `count` of axis 0.
  Buffer first(std::int64_t count) const;
  Buffer reshaped(Shape other) const;
};

// Slots of neighbouring rows, and where they go.
struct Span {
  std::int64_t row;         // the first row written
  std::int64_t source_row;  // the first row read
  std::int64_t rows;
  std::int64_t at;     // the first slot written
  std::int64_t first;  // the first slot read
  std::int64_t slots;  // of each row
};

// Allocates the buffers of one batch and copies between them. Used from one thread.
class Memory {
 public:
  virtual ~Memory() = default;

  // A tensor of zeros. For a stack, [count, ...], each part may be bound by itself.
  virtual Buffer zeros(Shape shape, DType dtype) = 0;
  // Copies slots of rows from one stack [parts, rows, entries, ..., slots, width] to another of
  // the same type, or inside one; where entries differ, the first ones that both have.
  virtual void copy(const Buffer& target, const Buffer& source, const Span& span) = 0;
  // Sets target[:, row, ..., first : first + count, :] to zero.
  virtual void clear(const Buffer& target, std::int64_t row, std::int64_t first,
                     std::int64_t count) = 0;
  // The buffer's bytes on the host, valid until the next read of it. Everything started in this
  // memory is complete afterwards.
  virtual const std::byte* read(const Buffer& buffer) = 0;
  // Bytes copied between host and device so far; 0 where the memory is the host's.
  virtual std::uint64_t host_bytes() const { return 0; }
};

// Memory on the host.
class HostMemory : public Memory {
 public:
  Buffer zeros(Shape shape, DType dtype) override;
  void copy(const Buffer& target, const Buffer& source, const Span& span) override;
  void clear(const Buffer& target, std::int64_t row, std::int64_t first,
             std::int64_t count) override;
  const std::byte* read(const Buffer& buffer) override { return buffer.data; }
};

// The runs of bytes that Memory::copy moves between two stacks, as strides of equal boxes:
// for each part, row, entry and inner index, `bytes` from source to target.
struct CopyPlan {
  std::int64_t parts, rows, entries, inner;
  std::size_t bytes;
  // Strides in bytes of parts, rows, entries, inner; then the offset of the first run.
  std::size_t target[5], source[5];
};
CopyPlan plan_copy(const Buffer& target, const Buffer& source, const Span& span);

}  // namespace ouro::core
