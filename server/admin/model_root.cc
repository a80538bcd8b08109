#include "server/admin/model_root.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

namespace fs = std::filesystem;

absl::Status Wrong(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("path ", path, ": ", what));
}

absl::Status CheckSpelling(const std::string& path) {
  if (path.empty()) return absl::InvalidArgumentError("path: is empty");
  if (path.find('\0') != std::string::npos) return absl::InvalidArgumentError("path: holds a zero byte");
  const fs::path parts(path);
  if (parts.is_absolute()) return Wrong(path, "is absolute; it counts from --model-root");
  for (const fs::path& part : parts) {
    if (part == "..") return Wrong(path, "has a part '..'");
  }
  return absl::OkStatus();
}

bool IsBelow(const fs::path& real, const fs::path& root) {
  const fs::path relative = real.lexically_relative(root);
  return !relative.empty() && *relative.begin() != "..";
}

// Whether what `entry` is or leads to lies below `root`; a link to nowhere does not.
bool StaysBelow(const fs::path& entry, const fs::path& root) {
  std::error_code error;
  const fs::path real = fs::canonical(entry, error);
  return !error && IsBelow(real, root);
}

}  // namespace

absl::StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path) {
  if (absl::Status status = CheckSpelling(path); !status.ok()) return status;
  std::error_code error;
  const fs::path real_root = fs::canonical(root, error);
  if (error) return absl::FailedPreconditionError(absl::StrCat("--model-root: ", error.message()));
  const fs::path folder = fs::canonical(real_root / path, error);
  if (error || !fs::is_directory(folder, error)) {
    return absl::NotFoundError(absl::StrCat("path ", path, ": no such folder below --model-root"));
  }
  if (!IsBelow(folder, real_root)) return Wrong(path, "leads out of --model-root");
  fs::directory_iterator entries(folder, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    if (!entries->is_symlink() || StaysBelow(entries->path(), real_root)) continue;
    return Wrong(path, absl::StrCat(entries->path().filename().string(), " is a link that leads out of --model-root"));
  }
  if (error) return absl::NotFoundError(absl::StrCat("path ", path, ": ", error.message()));
  return folder.string();
}

}  // namespace expertd
