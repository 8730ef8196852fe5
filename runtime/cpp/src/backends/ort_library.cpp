#include "backends/ort_library.hpp"

#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <string>

#include "error.hpp"

// Null where nothing in the program defines it. A static link with ONNX Runtime defines it.
// NOLINTNEXTLINE(readability-redundant-declaration): the first one is not weak
extern "C" __attribute__((weak)) const OrtApiBase* OrtGetApiBase(void) noexcept;

namespace ouro::core {
namespace {

using Entry = const OrtApiBase* (*)();

const OrtApiBase* load() {
  // Microsoft's own builds from 1.29 on report what they run, and keep a number of the device below
  // the home directory for that, unless this is set before their first environment is made.
  ::setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  if (OrtGetApiBase != nullptr) return OrtGetApiBase();
  void* entry = dlsym(RTLD_DEFAULT, "OrtGetApiBase");
  std::string reason;
  for (const char* name : {"libonnxruntime.so.1", "libonnxruntime.so"}) {
    if (entry != nullptr) break;
    // One that the program loaded for itself alone bears this name too, and is taken.
    void* library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
    if (library != nullptr) {
      entry = dlsym(library, "OrtGetApiBase");
    } else if (reason.empty()) {
      reason = dlerror();
    }
  }
  if (entry == nullptr) {
    throw engine_error("ONNX Runtime was not found: " + reason,
                       "install it, or name the folder of libonnxruntime.so.1 in LD_LIBRARY_PATH");
  }
  return reinterpret_cast<Entry>(entry)();
}

}  // namespace

const OrtApiBase& find_onnxruntime() {
  static const OrtApiBase* const base = load();
  return *base;
}

}  // namespace ouro::core
