// Files that are read again when they have changed.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace expertd {

// Looks at what a path leads to, so that a symbolic link that now points elsewhere (as Kubernetes mounts secrets)
// counts as a change. Not thread-safe.
class WatchedFiles {
 public:
  explicit WatchedFiles(std::vector<std::string> paths);

  // True when any of them is another file, or has other contents by its size and time, than at the last call.
  bool Changed();

 private:
  struct Stamp {
    dev_t device = 0;
    ino_t inode = 0;
    off_t size = -1;  // -1: not there
    std::int64_t modified_ns = 0;
    bool operator==(const Stamp&) const = default;
  };
  static Stamp Look(const std::string& path);

  const std::vector<std::string> paths_;
  std::vector<Stamp> stamps_;
};

// All of a small file (credentials are). InvalidArgument "<flag> <path>: <what the system said>", or when it is larger
// than a MiB.
absl::StatusOr<std::string> ReadSmallFile(const std::string& flag, const std::string& path);

}  // namespace expertd
