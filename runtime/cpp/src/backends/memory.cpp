#include "backends/memory.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

#include "bundle/contract.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

const contract::ElementType& row_of(DType dtype) {
  return contract::kElementTypes[static_cast<std::size_t>(dtype)];
}

// Strides in bytes of [parts, rows, entries, inner, slots], and the bytes of a slot.
struct Strides {
  std::size_t parts, rows, entries, inner, slot;
};

Strides strides_of(const Buffer& buffer) {
  const Shape& shape = buffer.shape;
  const std::size_t rank = shape.size();
  Strides result{};
  result.slot = static_cast<std::size_t>(shape[rank - 1]) * item_bytes(buffer.dtype);
  result.inner = result.slot * static_cast<std::size_t>(shape[rank - 2]);
  std::size_t inner_count = 1;
  for (std::size_t axis = 3; axis + 2 < rank; ++axis) {
    inner_count *= static_cast<std::size_t>(shape[axis]);
  }
  result.entries = result.inner * inner_count;
  result.rows = result.entries * static_cast<std::size_t>(shape[2]);
  result.parts = result.rows * static_cast<std::size_t>(shape[1]);
  return result;
}

std::int64_t inner_of(const Shape& shape) {
  std::int64_t count = 1;
  for (std::size_t axis = 3; axis + 2 < shape.size(); ++axis) count *= shape[axis];
  return count;
}

}  // namespace

std::size_t item_bytes(DType dtype) { return static_cast<std::size_t>(row_of(dtype).item_bytes); }

std::string_view dtype_name(DType dtype) { return row_of(dtype).name; }

DType parse_dtype(std::string_view name) {
  const contract::ElementType* found = contract::find_type(name);
  if (found != nullptr) return static_cast<DType>(found - contract::kElementTypes);
  throw bundle_error("the element type " + std::string(name) + " is not known", kExportAgain);
}

std::size_t count_elements(const Shape& shape) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(count, size, &count)) throw std::bad_alloc();
  }
  return static_cast<std::size_t>(count);
}

std::size_t Buffer::bytes() const {
  std::size_t count = count_elements(shape);
  if (__builtin_mul_overflow(count, item_bytes(dtype), &count)) throw std::bad_alloc();
  return count;
}

Buffer Buffer::part(std::size_t index) const {
  Buffer result = *this;
  result.shape.erase(result.shape.begin());
  result.data = data + index * result.bytes();
  return result;
}

Buffer Buffer::first(std::int64_t count) const {
  Buffer result = *this;
  result.shape[0] = count;
  return result;
}

Buffer Buffer::reshaped(Shape other) const {
  Buffer result = *this;
  result.shape = std::move(other);
  return result;
}

CopyPlan plan_copy(const Buffer& target, const Buffer& source, const Span& span) {
  const Strides to = strides_of(target), from = strides_of(source);
  const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
  CopyPlan plan{};
  plan.parts = target.shape[0];
  plan.rows = span.rows;
  plan.entries = 1;
  plan.inner = inner_of(target.shape);
  plan.entries = std::min(target.shape[2], source.shape[2]);
  plan.bytes = size(span.slots) * to.slot;
  const std::size_t written = size(span.row) * to.rows + size(span.at) * to.slot;
  const std::size_t read = size(span.source_row) * from.rows + size(span.first) * from.slot;
  const std::size_t target_strides[5] = {to.parts, to.rows, to.entries, to.inner, written};
  const std::size_t source_strides[5] = {from.parts, from.rows, from.entries, from.inner, read};
  std::copy(std::begin(target_strides), std::end(target_strides), plan.target);
  std::copy(std::begin(source_strides), std::end(source_strides), plan.source);
  return plan;
}

Buffer HostMemory::zeros(Shape shape, DType dtype) {
  Buffer buffer;
  buffer.shape = std::move(shape);
  buffer.dtype = dtype;
  // calloc: pages of a large cache are touched when they are written, not now.
  void* memory = std::calloc(std::max<std::size_t>(buffer.bytes(), 1), 1);
  if (memory == nullptr) throw std::bad_alloc();
  buffer.owner = std::shared_ptr<void>(memory, std::free);
  buffer.data = static_cast<std::byte*>(memory);
  return buffer;
}

void HostMemory::copy(const Buffer& target, const Buffer& source, const Span& span) {
  if (span.slots == 0 || span.rows == 0) return;
  const CopyPlan plan = plan_copy(target, source, span);
  for (std::int64_t part = 0; part < plan.parts; ++part) {
    for (std::int64_t row = 0; row < plan.rows; ++row) {
      for (std::int64_t entry = 0; entry < plan.entries; ++entry) {
        const std::size_t index[3] = {static_cast<std::size_t>(part), static_cast<std::size_t>(row),
                                      static_cast<std::size_t>(entry)};
        std::byte* to = target.data + plan.target[4];
        const std::byte* from = source.data + plan.source[4];
        for (int axis = 0; axis < 3; ++axis) {
          to += index[axis] * plan.target[axis];
          from += index[axis] * plan.source[axis];
        }
        for (std::int64_t inner = 0; inner < plan.inner; ++inner) {
          std::memcpy(to, from, plan.bytes);
          to += plan.target[3];
          from += plan.source[3];
        }
      }
    }
  }
}

void HostMemory::clear(const Buffer& target, std::int64_t row, std::int64_t first,
                       std::int64_t count) {
  if (count <= 0) return;
  const Strides to = strides_of(target);
  const std::size_t bytes = static_cast<std::size_t>(count) * to.slot;
  const std::size_t boxes = to.rows / std::max<std::size_t>(to.inner, 1);
  for (std::int64_t part = 0; part < target.shape[0]; ++part) {
    std::byte* start = target.data + static_cast<std::size_t>(part) * to.parts +
                       static_cast<std::size_t>(row) * to.rows +
                       static_cast<std::size_t>(first) * to.slot;
    for (std::size_t box = 0; box < boxes; ++box) std::memset(start + box * to.inner, 0, bytes);
  }
}

}  // namespace ouro::core
