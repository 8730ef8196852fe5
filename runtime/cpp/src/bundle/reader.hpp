// Bundles on disk: opening one verifies every file it lists before any is used.
#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

#include "bundle/manifest.hpp"

namespace ouro::core {

// A verified bundle: its directory and its manifest.
class Bundle {
 public:
  Bundle(std::filesystem::path folder, Manifest manifest);

  // The path of a file that the manifest lists, so that its hash was verified. Throws bundle_error
  // where it lists none of that name.
  std::filesystem::path file(const std::string& name) const;
  const Manifest& manifest() const noexcept { return manifest_; }
  const std::filesystem::path& folder() const noexcept { return folder_; }

 private:
  std::filesystem::path folder_;
  Manifest manifest_;
};

// Reads the manifest of a bundle and proves its hash and rules; the files are not looked at.
// Throws bundle_error.
Manifest read_manifest(const std::filesystem::path& folder);

// Opens a bundle and verifies the existence, size and SHA-256 of every file it lists. Files that it
// does not list are left alone. `check` gets the manifest before the files are read; what it throws
// ends it there. Throws bundle_error.
Bundle open_bundle(const std::filesystem::path& folder,
                   const std::function<void(const Manifest&)>& check = {});

// A file's bytes, whole. Throws bundle_error where it can't be read.
std::string read_file(const std::filesystem::path& file);

// Reads a plan, once, and only hands it out if its hash is the one given. Throws bundle_error.
std::string read_plan(const std::filesystem::path& file, const std::string& sha256);

}  // namespace ouro::core
