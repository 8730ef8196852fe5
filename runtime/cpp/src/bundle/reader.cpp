#include "bundle/reader.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <fstream>
#include <set>
#include <system_error>
#include <vector>

#include "bundle/hashing.hpp"
#include "bundle/json.hpp"
#include "bundle/say.hpp"
#include "error.hpp"

namespace ouro::core {
namespace {

namespace fs = std::filesystem;

constexpr char kCopyAgain[] = "copy or export it again";
constexpr char kMakeOne[] = "make one with `ouro export CHECKPOINT OUT`";
constexpr std::size_t kMostLinks = 400;  // on the way to one file

std::string describe(int code) { return std::generic_category().message(code); }

// An error of the operating system as Python writes it.
std::string describe(int code, const fs::path& file) {
  return say("[Errno {}] {}: {}", code, describe(code), repr(file.native()));
}

// What stands at a path, its links followed; nothing where nothing can stand there. Throws
// bundle_error "cannot read {shown}: ..." where that can't be known, `brief` without the path
// again.
fs::file_type type_of(const fs::path& path, const fs::path& shown, bool brief = true) {
  std::error_code error;
  const fs::file_type type = fs::status(path, error).type();
  const int code = error.value();
  if (!error || code == ENOENT || code == ENOTDIR || code == ELOOP) return type;
  const std::string why = brief ? describe(code) : describe(code, path);
  throw bundle_error(say("cannot read {}: {}", shown.native(), why), kUnreadable);
}

// The parts of a path but its root, `.` and what is empty, the last one first.
std::vector<fs::path> split(const fs::path& path) {
  std::vector<fs::path> parts;
  for (const fs::path& part : path.relative_path()) {
    if (!part.empty() && part != ".") parts.insert(parts.begin(), part);
  }
  return parts;
}

// A path in Python's plainest form.
fs::path plain(const fs::path& path) {
  fs::path result = path.root_directory();
  const std::vector<fs::path> parts = split(path);
  std::for_each(parts.rbegin(), parts.rend(), [&](const fs::path& part) { result /= part; });
  return result.empty() ? "." : result;
}

// A path with every link of it followed, as os.path.realpath does, whatever is there. Throws
// bundle_error, of `file`, where links lead round in a circle.
fs::path resolve(const fs::path& path, const fs::path& file) {
  const fs::path whole = fs::absolute(path);
  std::vector<fs::path> rest = split(whole);  // the next part last
  fs::path real = whole.root_path(), again;   // the first link that is met twice, and what follows
  std::set<fs::path> seen;
  for (std::size_t links = 0; !rest.empty();) {
    const fs::path next = real / rest.back();
    rest.pop_back();
    std::error_code error;
    const fs::path target = fs::read_symlink(next, error);
    if (next.filename() == "..") {
      real = real.parent_path();
    } else if (error) {
      real = next;
    } else {
      if (!seen.insert(next).second && again.empty()) {
        again = next;
        for (auto part = rest.rbegin(); part != rest.rend(); ++part) again /= *part;
      }
      if (++links > kMostLinks) {
        throw bundle_error(say("cannot read {}: Symlink loop from {}", file.native(),
                               repr((again.empty() ? next : again).native())),
                           kUnreadable);
      }
      if (target.is_absolute()) real = target.root_path();
      const std::vector<fs::path> parts = split(target);
      rest.insert(rest.end(), parts.begin(), parts.end());
    }
  }
  return real;
}

void verify_file(const fs::path& folder, const std::string& name, const FileSpec& spec) {
  const fs::path file = folder / name;
  const fs::path real = resolve(folder, file), found = resolve(file, file);
  if (std::mismatch(real.begin(), real.end(), found.begin(), found.end()).first != real.end()) {
    throw bundle_error(say("{} is a link out of the bundle", file.native()),
                       "copy the file in its place");
  }
  if (type_of(file, file, false) != fs::file_type::regular) {
    throw bundle_error(say("the bundle {} lacks {}", folder.native(), name), kCopyAgain);
  }
  std::string digest;
  try {
    const std::uintmax_t size = fs::file_size(file);
    if (size != static_cast<std::uintmax_t>(spec.bytes)) {
      throw bundle_error(
          say("{} has {} bytes, its manifest says {}", file.native(), size, spec.bytes),
          kCopyAgain);
    }
    digest = hash_file(file);
  } catch (const std::system_error& error) {
    throw bundle_error(
        say("cannot read {}: {}", file.native(), describe(error.code().value(), file)),
        kUnreadable);
  }
  if (digest != spec.sha256) {
    throw bundle_error(say("{} is damaged or was changed: sha256 {}..., its manifest says {}...",
                           file.native(), digest.substr(0, 12), spec.sha256.substr(0, 12)),
                       kCopyAgain);
  }
}

}  // namespace

Bundle::Bundle(fs::path folder, Manifest manifest)
    : folder_(std::move(folder)), manifest_(std::move(manifest)) {}

fs::path Bundle::file(const std::string& name) const {
  if (find(manifest_.files, name) != nullptr) return folder_ / name;
  throw bundle_error(say("the bundle {} holds no {}", folder_.native(), name), "export it again");
}

std::string read_file(const fs::path& file) {
  const auto fail = [&](int code) {
    return bundle_error(say("cannot read {}: {}", file.native(), describe(code)), kUnreadable);
  };
  errno = 0;
  std::ifstream opened(file, std::ios::binary);
  if (!opened) throw fail(errno ? errno : EIO);
  std::error_code error;
  const std::uintmax_t size = fs::file_size(file, error);
  if (error) throw fail(error.value());
  std::string text(size, '\0');
  opened.read(text.data(), static_cast<std::streamsize>(size));
  if (static_cast<std::uintmax_t>(opened.gcount()) != size) throw fail(errno ? errno : EIO);
  return text;
}

std::string read_plan(const fs::path& file, const std::string& sha256) {
  std::string data = read_file(file);
  const std::string digest = hash_text(data);
  if (digest == sha256) return data;
  throw bundle_error(say("{} is damaged or was changed: sha256 {}..., its manifest says {}...; it "
                         "was not loaded",
                         file.native(), digest.substr(0, 12), sha256.substr(0, 12)),
                     kCopyAgain);
}

Manifest read_manifest(const fs::path& path) {
  const fs::path folder = plain(path), file = folder / kManifestName, hashes = folder / kHashName;
  const fs::file_type type = type_of(folder, file);
  if (type == fs::file_type::not_found || type == fs::file_type::none) {
    throw bundle_error(say("no bundle at {}", folder.native()), kMakeOne);
  }
  if (type != fs::file_type::directory) {
    throw bundle_error(say("{} is a file", folder.native()),
                       say("a bundle is a directory with {}", kManifestName));
  }
  if (type_of(file, file) != fs::file_type::regular) {
    throw bundle_error(say("{} is not a bundle: it has no {}", folder.native(), kManifestName),
                       kMakeOne);
  }
  std::error_code error;
  if (fs::file_size(file, error) > kManifestBytesLimit && !error) {
    throw bundle_error(say("{} is larger than {} bytes", file.native(), kManifestBytesLimit),
                       kCopyOrExport);
  }
  const std::string text = read_file(file);
  const bool small = type_of(hashes, file) == fs::file_type::regular &&
                     fs::file_size(hashes, error) <= kHashBytesLimit && !error;
  const std::string said = small ? read_file(hashes) : "";
  check_hash(text, small ? &said : nullptr);
  return parse_manifest_text(text);
}

Bundle open_bundle(const fs::path& path, const std::function<void(const Manifest&)>& check) {
  const fs::path folder = plain(path);
  Manifest manifest = read_manifest(folder);
  if (check) check(manifest);
  for (const auto& [name, spec] : manifest.files) verify_file(folder, name, spec);
  return Bundle(folder, std::move(manifest));
}

}  // namespace ouro::core
