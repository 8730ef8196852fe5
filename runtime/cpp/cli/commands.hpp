// The commands of ouro-cli. Each returns the exit status; errors are thrown.
#pragma once

#include <string>
#include <vector>

#include "arguments.hpp"

namespace ouro::cli {

// What each command takes, and what it does with the words behind its name.
Command run_command();
int run(const Given& given);

Command check_command();
int check(const Given& given);

Command bench_command();
int bench(const Given& given);

}  // namespace ouro::cli
