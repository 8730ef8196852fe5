// Runs recorded cases on a backend; what they give is compared elsewhere.
// Port of runtime/parity/replay.py.
#pragma once

#include <memory>
#include <vector>

#include "backends/backend.hpp"
#include "bundle/manifest.hpp"
#include "cases.hpp"

namespace ouro::cli {

// Runs every case, in order: one result a case. A case that cannot run gives a result that says
// why: it is never skipped.
std::vector<Result> run_cases(const std::vector<Case>& cases,
                              const std::shared_ptr<core::Backend>& backend,
                              const core::Manifest& manifest);

}  // namespace ouro::cli
