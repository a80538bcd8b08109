#include "server/access/token_table.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace expertd {
namespace {

constexpr std::size_t kMinToken = 16, kMaxToken = 512, kMaxTenant = 64;

bool Consists(absl::string_view text, absl::string_view others) {
  return std::all_of(text.begin(), text.end(), [&](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || others.find(c) != absl::string_view::npos;
  });
}

constexpr struct {
  absl::string_view name;
  bool Caller::*may;
} kRoles[] = {{"infer", &Caller::may_infer}, {"admin", &Caller::may_admin}};

absl::Status ParseRoles(absl::string_view list, Caller* caller) {
  for (const absl::string_view role : absl::StrSplit(list, ',')) {
    const auto* const known =
        std::find_if(std::begin(kRoles), std::end(kRoles), [&](const auto& row) { return row.name == role; });
    if (known == std::end(kRoles)) {
      return absl::InvalidArgumentError("the second field is a list of roles: infer, admin or infer,admin");
    }
    caller->*known->may = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TokenTable> TokenTable::Parse(absl::string_view text, absl::string_view name) {
  TokenTable table;
  int number = 0;
  for (const absl::string_view whole : absl::StrSplit(text, '\n')) {
    ++number;
    const absl::string_view line = absl::StripAsciiWhitespace(whole);
    if (line.empty() || line.front() == '#') continue;
    absl::StatusOr<Entry> entry = ParseLine(line);
    if (!entry.ok()) return absl::InvalidArgumentError(absl::StrCat(name, ":", number, ": ", entry.status().message()));
    const bool twice = std::any_of(table.entries_.begin(), table.entries_.end(),
                                   [&](const Entry& other) { return other.hash == entry->hash; });
    if (twice) return absl::InvalidArgumentError(absl::StrCat(name, ":", number, ": the token stands above already"));
    table.entries_.push_back(*std::move(entry));
  }
  return table;
}

absl::StatusOr<TokenTable::Entry> TokenTable::ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> fields = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
  if (fields.size() != 3) {
    return absl::InvalidArgumentError(absl::StrCat(fields.size(), " fields where 3 are wanted: token, roles, tenant"));
  }
  Entry entry;
  absl::StatusOr<Hash> hash = ParseSecret(fields[0]);
  if (!hash.ok()) return hash.status();
  entry.hash = *hash;
  if (absl::Status status = ParseRoles(fields[1], &entry.caller); !status.ok()) return status;
  if (fields[2].size() > kMaxTenant || !Consists(fields[2], "-._:/@")) {
    return absl::InvalidArgumentError("the third field is a tenant: 1 to 64 of A-Z a-z 0-9 - . _ : / @");
  }
  entry.caller.tenant = std::string(fields[2]);
  return entry;
}

absl::StatusOr<TokenTable::Hash> TokenTable::ParseSecret(absl::string_view secret) {
  Hash hash;
  if (absl::ConsumePrefix(&secret, "plain:")) {
    if (secret.size() < kMinToken || secret.size() > kMaxToken || !Consists(secret, "-._~+/=")) {
      return absl::InvalidArgumentError("a plain token has 16 to 512 characters of A-Z a-z 0-9 - . _ ~ + / =");
    }
    SHA256(reinterpret_cast<const unsigned char*>(secret.data()), secret.size(), hash.data());
    return hash;
  }
  const bool hex = absl::ConsumePrefix(&secret, "sha256:") && secret.size() == 2 * hash.size() &&
                   std::all_of(secret.begin(), secret.end(),
                               [](char c) { return absl::ascii_isxdigit(static_cast<unsigned char>(c)); });
  if (!hex) return absl::InvalidArgumentError("the first field is sha256:<64 hex digits> or plain:<token>");
  const std::string bytes = absl::HexStringToBytes(secret);
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

std::optional<Caller> TokenTable::Find(absl::string_view token) const {
  Hash hash;
  SHA256(reinterpret_cast<const unsigned char*>(token.data()), token.size(), hash.data());
  const Entry* found = nullptr;
  for (const Entry& entry : entries_) {
    if (CRYPTO_memcmp(entry.hash.data(), hash.data(), hash.size()) == 0) found = &entry;
  }
  if (found == nullptr) return std::nullopt;
  return found->caller;
}

absl::StatusOr<std::shared_ptr<TokenStore>> OpenTokens(const std::string& path) {
  return TokenStore::Open({path}, [path]() -> absl::StatusOr<TokenTable> {
    absl::StatusOr<std::string> text = ReadSmallFile("--tokens-file", path);
    if (!text.ok()) return text.status();
    return TokenTable::Parse(*text, absl::StrCat("--tokens-file ", path));
  });
}

}  // namespace expertd
