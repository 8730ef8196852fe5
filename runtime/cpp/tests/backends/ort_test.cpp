// What is shown of ONNX Runtime's errors, as runtime/backends/ort.py has it.
#include <catch2/catch.hpp>
#include <string>

#include "backends/ort.hpp"

using ouro::core::leave_out_source;

TEST_CASE("places in ONNX Runtime's own source are left out") {
  const std::string place = "/onnxruntime_src/core/graph/graph.cc:123 ";
  CHECK(leave_out_source("Load: " + place + "void f(int, long) it is odd") == "Load: it is odd");
  CHECK(leave_out_source(place + "int g() const it is odd") == "it is odd");
  CHECK(leave_out_source(place + "void h(std::function<void()>) odd") == "odd");
  CHECK(leave_out_source(place + "a() b " + place + "c() d") == "b d");
  for (const std::string text :
       {"/onnxruntime_src/a.cc f() x", "/onnxruntime_src/a.cc:7 no arguments",
        "/onnxruntime_src/a.cc:7 ) f() x", "/onnxruntime_src/a.cc:7 f()",
        "/onnxruntime_src/:7 f() x", "/onnxruntime_src/a.cc:7", ""}) {
    CHECK(leave_out_source(text) == text);
  }
  const std::string name = "/onnxruntime_src/" + std::string(1 << 20, 'a');  // of a hostile graph
  CHECK(leave_out_source(name) == name);
}
