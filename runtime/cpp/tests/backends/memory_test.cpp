// Copies between stacks equal plain loops, on the host and through the calls of the CUDA runtime,
// which here move memory of the host.
#include <catch2/catch.hpp>

#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

#include "backends/cuda.hpp"
#include "backends/memory.hpp"
#include "backends/trt.hpp"
#include "error.hpp"

using namespace ouro::core;  // NOLINT: a test

namespace {

// A CUDA runtime whose device is the host.
std::shared_ptr<const CudaRuntime> make_runtime() {
  auto cuda = std::make_shared<CudaRuntime>();
  cuda->get_device_count = [](int* count) { return *count = 1, 0; };
  cuda->device_get_attribute = [](int* value, int attribute, int) {
    return *value = attribute == 75 ? 8 : 9, 0;
  };
  cuda->driver_get_version = [](int* version) { return *version = 13020, 0; };
  cuda->malloc = [](void** memory, std::size_t bytes) {
    *memory = std::malloc(bytes);
    return *memory == nullptr ? 2 : 0;
  };
  cuda->free = [](void* memory) { return std::free(memory), 0; };
  cuda->memset_async = [](void* memory, int value, std::size_t bytes, void*) {
    return std::memset(memory, value, bytes), 0;
  };
  cuda->memset_2d_async = [](void* memory, std::size_t pitch, int value, std::size_t width,
                             std::size_t height, void*) {
    for (std::size_t row = 0; row < height; ++row) {
      std::memset(static_cast<char*>(memory) + row * pitch, value, width);
    }
    return 0;
  };
  cuda->memcpy_async = [](void* to, const void* from, std::size_t bytes, int, void*) {
    return std::memcpy(to, from, bytes), 0;
  };
  cuda->memcpy_2d_async = [](void* to, std::size_t pitch, const void* from, std::size_t other,
                             std::size_t width, std::size_t height, int, void*) {
    if (width > pitch || width > other) return 12;  // cudaErrorInvalidPitchValue
    for (std::size_t row = 0; row < height; ++row) {
      std::memcpy(static_cast<char*>(to) + row * pitch,
                  static_cast<const char*>(from) + row * other, width);
    }
    return 0;
  };
  cuda->stream_create = [](void** stream) { return *stream = nullptr, 0; };
  cuda->stream_synchronize = [](void*) { return 0; };
  cuda->stream_destroy = [](void*) { return 0; };
  cuda->get_error_name = [](int error) { return error == 2 ? "cudaErrorMemoryAllocation" : "odd"; };
  return cuda;
}

std::size_t index_of(const Shape& shape, const Shape& place) {
  std::size_t index = 0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    index = index * static_cast<std::size_t>(shape[axis]) + static_cast<std::size_t>(place[axis]);
  }
  return index;
}

// Calls a function with every place of a shape.
template <class Function>
void walk(const Shape& shape, Function function) {
  Shape place(shape.size(), 0);
  for (std::size_t left = count_elements(shape); left > 0; --left) {
    function(place);
    for (std::size_t axis = shape.size(); axis-- > 0;) {
      if (++place[axis] < shape[axis]) break;
      place[axis] = 0;
    }
  }
}

std::vector<float> values_of(Memory& memory, const Buffer& buffer) {
  std::vector<float> values(count_elements(buffer.shape));
  std::memcpy(values.data(), memory.read(buffer), buffer.bytes());
  return values;
}

void fill(const Buffer& buffer, std::mt19937& random) {
  auto* values = reinterpret_cast<float*>(buffer.data);
  for (std::size_t index = 0; index < count_elements(buffer.shape); ++index) {
    values[index] = static_cast<float>(random() % 10000);
  }
}

void compare_copies(Memory& memory) {
  std::mt19937 random(7);
  const auto draw = [&random](std::int64_t least, std::int64_t most) {
    return least + static_cast<std::int64_t>(random()) % (most - least + 1);
  };
  for (int round = 0; round < 200; ++round) {
    // [parts, rows, kv, slots, hd], or with entries before kv, or pooled sums without.
    const int kind = round % 3;
    Shape to = {draw(1, 3), draw(1, 4)}, from = {to[0], draw(1, 4)};
    const std::int64_t entries = draw(1, 5), width = draw(1, 4), heads = draw(1, 3);
    to.push_back(kind == 0 ? heads : entries);
    from.push_back(kind == 0 ? heads : draw(1, 5));
    if (kind == 1) {
      to.push_back(heads);
      from.push_back(heads);
    }
    to.insert(to.end(), {draw(1, 6), width});
    from.insert(from.end(), {draw(1, 6), width});
    const std::size_t slots = to.size() - 2;
    const std::int64_t rows = std::min(to[1], from[1]), count = std::min(to[slots], from[slots]);
    Span span{draw(0, to[1] - rows),      draw(0, from[1] - rows),      rows,
              draw(0, to[slots] - count), draw(0, from[slots] - count), count};
    const Buffer target = memory.zeros(to, DType::kFloat32);
    const Buffer source = memory.zeros(from, DType::kFloat32);
    fill(target, random);
    fill(source, random);
    std::vector<float> expected = values_of(memory, target);
    const std::vector<float> read = values_of(memory, source);
    walk(to, [&](const Shape& place) {
      Shape origin = place;
      origin[1] += span.source_row - span.row;
      origin[slots] += span.first - span.at;
      const bool inside = place[1] >= span.row && place[1] < span.row + rows &&
                          place[slots] >= span.at && place[slots] < span.at + count &&
                          place[2] < from[2];
      if (inside) expected[index_of(to, place)] = read[index_of(from, origin)];
    });
    memory.copy(target, source, span);
    REQUIRE(values_of(memory, target) == expected);

    const std::int64_t row = draw(0, to[1] - 1), first = draw(0, to[slots] - count);
    walk(to, [&](const Shape& place) {
      if (place[1] == row && place[slots] >= first && place[slots] < first + count) {
        expected[index_of(to, place)] = 0;
      }
    });
    memory.clear(target, row, first, count);
    REQUIRE(values_of(memory, target) == expected);
  }
}

}  // namespace

TEST_CASE("copies on the host equal plain loops") {
  HostMemory memory;
  compare_copies(memory);
  CHECK(memory.host_bytes() == 0);
}

TEST_CASE("copies on the device equal plain loops") {
  CudaMemory memory(make_runtime());
  compare_copies(memory);
  CHECK(memory.host_bytes() > 0);
}

TEST_CASE("parts and first rows share their memory") {
  HostMemory memory;
  const Buffer whole = memory.zeros({2, 3, 4}, DType::kInt64);
  const Buffer part = whole.part(1);
  CHECK(part.shape == Shape{3, 4});
  CHECK(part.data == whole.data + 12 * sizeof(std::int64_t));
  CHECK(part.first(2).bytes() == 8 * sizeof(std::int64_t));
}

TEST_CASE("a failing call of CUDA is an error with its name") {
  auto cuda = std::make_shared<CudaRuntime>(*make_runtime());
  cuda->malloc = [](void**, std::size_t) { return 2; };
  CudaMemory memory(cuda);
  CHECK_THROWS_WITH(memory.zeros({1}, DType::kFloat32),
                    "CUDA: cudaMalloc failed with cudaErrorMemoryAllocation; is a GPU free?");
}

TEST_CASE("a GPU is described as plans ask for it") {
  const GpuFacts gpu = describe_gpu(*make_runtime());
  CHECK(gpu.compute_capability == "8.9");
  CHECK(gpu.cuda_major == 13);
}

TEST_CASE("the first profile that takes a call is chosen") {
  const std::vector<ProfileSpec> profiles = {
      {"decode", {{"input_ids", {1, 1}, {1, 1}, {4, 1}}}, {{"depth", {1}, {8}, {16}}}},
      {"prefill", {{"input_ids", {1, 1}, {1, 64}, {4, 512}}}, {{"depth", {1}, {8}, {16}}}},
  };
  const auto choose = [&](Shape ids, std::int64_t depth) {
    return choose_profile(profiles, {{"input_ids", std::move(ids)}}, {{"depth", {depth}}});
  };
  CHECK(choose({2, 1}, 3) == 0);
  CHECK(choose({2, 9}, 16) == 1);
  CHECK_THROWS_WITH(choose({5, 9}, 3),
                    "input_ids has the shape [5, 9], the plan's profile prefill takes [1, 1] to "
                    "[4, 512]; export again with a larger --max-batch, --max-seq or --max-depth");
  CHECK_THROWS_WITH(
      choose({1, 1}, 17),
      "depth has the value [17], the plan's profile prefill takes [1] to [16]; export "
      "again with a larger --max-batch, --max-seq or --max-depth");
}

TEST_CASE("a machine without CUDA says so") {
  CHECK_THROWS_AS(load_cuda("/nowhere/libcudart.so"), Error);
}

TEST_CASE("a shape beyond any memory is refused, not wrapped round") {
  HostMemory memory;
  const std::int64_t large = std::int64_t{1} << 58;
  for (const Shape& shape : {Shape{large, 64}, Shape{large, 8}, Shape{-1, 4}}) {
    CHECK_THROWS_AS(memory.zeros(shape, DType::kFloat32), std::bad_alloc);
  }
  CHECK(memory.zeros({0, large}, DType::kFloat32).bytes() == 0);
}
