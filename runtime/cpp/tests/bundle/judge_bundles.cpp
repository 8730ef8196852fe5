// What C++ says of bundles, for tests/runtime/cpp/test_bundles.py. Reads a line at a time, the path
// of a bundle or a command: "json PATH" reads a manifest's text alone, "cases PATH" a file of
// recorded cases, "names PATH" the external data of a bundle. Writes one line for each, in JSON:
// [code, problem, cure], or "ok".
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>

#include "bundle/external_data.hpp"
#include "bundle/reader.hpp"
#include "bundle/safetensors.hpp"
#include "error.hpp"

namespace {

using ouro::core::Error;

void judge(const std::string& command, const std::string& path) {
  if (command == "json") {
    ouro::core::parse_manifest_text(ouro::core::read_file(path));
  } else if (command == "cases") {
    const ouro::core::Safetensors cases{std::filesystem::path(path)};
  } else {
    const ouro::core::Bundle bundle = ouro::core::open_bundle(path);
    if (command == "names") ouro::core::check_external_data(bundle);
  }
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const std::size_t space = line.find(' ');
    nlohmann::json answer = "ok";
    try {
      judge(line.substr(0, space), line.substr(space + 1));
    } catch (const Error& error) {
      answer = {static_cast<int>(error.code()), error.problem(), error.cure()};
    }
    using Handler = nlohmann::json::error_handler_t;
    std::cout << answer.dump(-1, ' ', false, Handler::replace) << std::endl;
  }
}
