// The folder that admin calls may load from, and nothing else.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace expertd {

// The real path of the checkpoint folder `path` below `root`. What is there counts, not what it is called: symbolic
// links are followed, the folder's own and those of the files in it, and have to end below the root's real path (a
// model hub's cache, whose files are links to blobs beside them, is fine when the root holds both).
//
// InvalidArgument: `path` is empty, absolute or has a part "..", or a link leads outside; NotFound: no such folder. The
// messages name `path` and files in it, never what lies outside.
absl::StatusOr<std::string> ResolveBelow(const std::string& root, const std::string& path);

}  // namespace expertd
