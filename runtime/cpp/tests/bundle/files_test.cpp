// Files of a bundle that are read on their own: the graph's external data, recorded cases, plans.
#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>
#include <stdexcept>
#include <string>

#include "bundle/external_data.hpp"
#include "bundle/hashing.hpp"
#include "bundle/reader.hpp"
#include "bundle/safetensors.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

namespace fs = std::filesystem;

// A folder that is there as long as the object.
class Folder {
 public:
  Folder() : path_(fs::temp_directory_path() / ("ouro_files_" + std::to_string(::getpid()))) {
    fs::create_directories(path_);
  }
  ~Folder() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  fs::path write(const std::string& name, const std::string& content) const {
    std::ofstream(path_ / name, std::ios::binary) << content;
    return path_ / name;
  }

 private:
  fs::path path_;
};

// A field of a protobuf message with a length.
std::string field(int number, const std::string& content) {
  std::string text;
  for (std::size_t value : {static_cast<std::size_t>(number) << 3 | 2, content.size()}) {
    for (; value > 127; value >>= 7) text += static_cast<char>(value | 128);
    text += static_cast<char>(value);
  }
  return text + content;
}

std::string external_tensor(const std::string& name) {
  return field(13, field(1, "location") + field(2, name)) +
         field(13, field(1, "offset") + field(2, "0"));
}

std::string problem_of(const std::string& graph) {
  try {
    external_files(graph);
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "";
}

TEST_CASE("external data is found wherever a graph has tensors") {
  const std::string attribute = field(5, field(5, external_tensor("in_node")));
  const std::string graph =
      field(5, external_tensor("weights")) + field(1, attribute) +
      field(1, field(5, field(6, field(5, external_tensor("in_branch"))))) +
      field(15, field(1, external_tensor("sparse")) + field(2, external_tensor("places")));
  const std::string function =
      field(25, field(7, attribute) + field(7, field(5, field(5, external_tensor("f")))));
  const std::string model = std::string("\x08\x0a", 2) + field(7, graph) + function;
  CHECK(external_files(model) ==
        std::set<std::string>{"f", "in_branch", "in_node", "places", "sparse", "weights"});
  CHECK(external_files("").empty());
}

TEST_CASE("graphs nest without end and are cut off anywhere") {
  std::string graph = field(5, external_tensor("deep"));
  for (int i = 0; i < 2000; ++i) graph = field(1, field(5, field(6, graph)));
  const std::string model = field(7, graph);
  CHECK(external_files(model) == std::set<std::string>{"deep"});
  for (std::size_t size = 1; size < 200; ++size) CHECK(problem_of(model.substr(0, size)) != "");
}

TEST_CASE("what protobuf does not write is named") {
  CHECK(problem_of(std::string("\x00", 1)) == "a field has the number 0");
  CHECK(problem_of("\x0b") == "a field has the wire type 3");
  CHECK(problem_of("\x0a\x05"
                   "a") == "it ends in the middle of a field");
  CHECK(problem_of("\x80") == "it ends in the middle of a number");
  CHECK(problem_of(std::string(11, '\xff')) == "a number has more than 10 bytes");
  CHECK(problem_of(std::string(9, '\xff') + "\x7f") ==
        "a field has the number 147573952589676412927");
  CHECK(problem_of("\x0a" + std::string(9, '\xff') + "\x7f") == "it ends in the middle of a field");
  CHECK(problem_of(field(7, field(5, external_tensor("\xff")))) ==
        "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte");
}

std::string stored(const std::string& header, const std::string& data = "", std::size_t more = 0) {
  const std::uint64_t size = header.size() + more;
  std::string text(8, '\0');
  for (std::size_t i = 0; i < 8; ++i) text[i] = static_cast<char>(size >> 8 * i & 255);
  return text + header + data;
}

TEST_CASE("recorded cases are read") {
  const std::string data("\x01\x00\x00\x80\x3f\x02\x00\x00\x00\x00\x00\x00\x00", 13);
  const Safetensors file(stored(R"({"__metadata__": {"cases": "[]"},
                 "b": {"dtype": "I64", "shape": [1, 1], "data_offsets": [5, 13]},
                 "a": {"dtype": "F32", "shape": [], "data_offsets": [1, 5]},
                 "v": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
                 "none": {"dtype": "F16", "shape": [0, 9], "data_offsets": [5, 5]}}  )",
                                data),
                         "cases");
  CHECK(file.metadata() == std::map<std::string, std::string>{{"cases", "[]"}});
  REQUIRE(file.tensors().size() == 4);
  const StoredTensor& one = file.tensors().at("a");
  float value = 0;
  REQUIRE(one.bytes == sizeof value);
  std::memcpy(&value, one.data, sizeof value);
  CHECK(value == 1.0F);
  CHECK(one.dtype == "float32");
  CHECK(file.tensors().at("b").shape == std::vector<std::int64_t>{1, 1});
  CHECK(file.tensors().at("v").dtype == "bool");
  CHECK(file.tensors().at("none").bytes == 0);
}

TEST_CASE("nothing in a header of recorded cases is believed") {
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& place) {
    return stored(R"({"a": {"dtype": ")" + dtype + R"(", "shape": )" + shape +
                      R"(, "data_offsets": )" + place + "}}",
                  "1234");
  };
  const std::string huge = std::to_string(std::numeric_limits<std::int64_t>::max());
  const Safetensors whole(entry("F32", "[1]", "[0, 4]"), "cases");
  CHECK(whole.tensors().size() == 1);
  for (const std::string& content : {std::string(),
                                     std::string("1234567"),
                                     stored("{}", "", 1),
                                     stored("{}", "left"),
                                     stored("[]"),
                                     stored(" {}"),
                                     stored("{\"a\": 1}"),
                                     stored("{\"\xff\": {}}"),
                                     stored("{\"__metadata__\": {\"a\": 1}}"),
                                     stored("{}", "", 200'000'000),
                                     stored("{}", "", std::size_t{0} - 2),
                                     entry("F33", "[1]", "[0, 4]"),
                                     entry("F32", "[2]", "[0, 4]"),
                                     entry("F32", "[-1]", "[0, 4]"),
                                     entry("F32", "1", "[0, 4]"),
                                     entry("F32", "[1]", "[0, 8]"),
                                     entry("F32", "[1]", "[4, 0]"),
                                     entry("F32", "[1]", "[0]"),
                                     entry("F32", "[1.0]", "[0, 4]"),
                                     entry("F32", "[" + huge + ", 4]", "[0, 4]"),
                                     entry("F16", "[1]", "[0, 2]"),
                                     entry("F16", "[1]", "[2, 4]")}) {
    CAPTURE(content);
    try {
      const Safetensors file(content, "cases");
      FAIL("it was read");
    } catch (const Error& error) {
      CHECK(error.code() == Code::kBundle);
      CHECK(error.problem().find("cases cannot be read: ") == 0);
    }
  }
}

TEST_CASE("a plan is handed out where its hash is right") {
  const Folder folder;
  const std::string content("a plan\0", 7);
  const fs::path file = folder.write("one.plan", content);
  CHECK(hash_file(file) == hash_text(content));
  CHECK(read_plan(file, hash_text(content)) == content);
  const auto refusal = [&](const fs::path& path) -> std::string {
    try {
      read_plan(path, std::string(64, '0'));
    } catch (const Error& error) {
      return error.problem();
    }
    return "";
  };
  CHECK(refusal(file) == file.string() + " is damaged or was changed: sha256 " +
                             hash_text(content).substr(0, 12) +
                             "..., its manifest says 000000000000...; it was not loaded");
  const std::string none = (file.parent_path() / "none").string();
  CHECK(refusal(none) == "cannot read " + none + ": No such file or directory");
}

}  // namespace
}  // namespace ouro::core
