// A program of scenarios: PROGRAM BUNDLE SCENARIO ends with status 0, or says what went wrong;
// without arguments it lists them.
#pragma once

#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

using Scenarios = std::map<std::string, void (*)(const std::string& bundle)>;

inline void require(bool condition, const std::string& what) {
  if (!condition) throw std::runtime_error(what);
}

inline int run_scenario(const Scenarios& scenarios, int argc, char** argv) {
  if (argc == 1) {
    for (const auto& [name, scenario] : scenarios) std::cout << name << "\n";
    return 0;
  }
  const auto found = argc == 3 ? scenarios.find(argv[2]) : scenarios.end();
  if (found == scenarios.end()) {
    std::cerr << "usage: " << argv[0] << " BUNDLE SCENARIO\n";
    return 2;
  }
  try {
    found->second(argv[1]);
  } catch (const std::exception& error) {
    std::cerr << argv[2] << ": " << error.what() << "\n";
    return 1;
  }
  return 0;
}
