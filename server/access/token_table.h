// Bearer tokens and what they allow.
//
// A tokens file has one token a line, blank lines and lines that start with # apart:
//
//   sha256:<64 hex digits>  infer,admin  <tenant>
//   plain:<token>           infer        <tenant>
//
// sha256 is the hash of the token's bytes (printf %s "$TOKEN" | sha256sum), so that the file is no secret itself.
// Several tokens may name one tenant. A token has 16 to 512 characters of A-Z a-z 0-9 - . _ ~ + / =, a tenant 1 to 64
// of A-Z a-z 0-9 - . _ : / @.
#pragma once

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/access/reloaded.h"
#include "server/caller.h"

namespace expertd {

// Immutable. Holds hashes only.
class TokenTable {
 public:
  // InvalidArgument "<name>:<line>: <reason>", which never quotes a token.
  static absl::StatusOr<TokenTable> Parse(absl::string_view text, absl::string_view name);

  // The owner of `token`. The time it takes does not depend on which token it is, or on how much of one it has right:
  // hashes are compared, every one of them and in full.
  std::optional<Caller> Find(absl::string_view token) const;

  std::size_t size() const { return entries_.size(); }

 private:
  using Hash = std::array<unsigned char, 32>;
  struct Entry {
    Hash hash;
    Caller caller;
  };
  static absl::StatusOr<Entry> ParseLine(absl::string_view line);
  static absl::StatusOr<Hash> ParseSecret(absl::string_view secret);

  std::vector<Entry> entries_;
};

using TokenStore = Reloaded<TokenTable>;
// InvalidArgument naming --tokens-file, the path, and what Parse says.
absl::StatusOr<std::shared_ptr<TokenStore>> OpenTokens(const std::string& path);

}  // namespace expertd
