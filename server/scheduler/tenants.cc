#include "server/scheduler/tenants.h"

#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace expertd {
namespace {

constexpr double kMinWeight = 1e-3, kMaxWeight = 1e3;

}  // namespace

absl::StatusOr<TenantWeights> TenantWeights::Parse(absl::string_view text) {
  TenantWeights weights;
  if (text.empty()) return weights;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    // Names may hold '=' (a certificate's subject), weights do not.
    const std::size_t equals = part.rfind('=');
    double weight = 0;
    const bool valid = equals != absl::string_view::npos && equals > 0 &&
                       absl::SimpleAtod(part.substr(equals + 1), &weight) && weight >= kMinWeight &&
                       weight <= kMaxWeight;
    if (!valid) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", part, "' is not NAME=WEIGHT with a weight from ", kMinWeight, " to ", kMaxWeight));
    }
    if (!weights.named_.emplace(part.substr(0, equals), weight).second) {
      return absl::InvalidArgumentError(absl::StrCat("'", part.substr(0, equals), "' is named twice"));
    }
  }
  return weights;
}

double TenantWeights::Of(absl::string_view tenant) const {
  const auto found = named_.find(tenant);
  return found == named_.end() ? 1 : found->second;
}

TenantAccount& TenantAccounts::Enter(const std::string& tenant) {
  auto found = accounts_.find(tenant);
  if (found == accounts_.end() || found->second.requests == 0) {
    AdvanceFloor();
    found = accounts_.try_emplace(tenant).first;
    TenantAccount& account = found->second;
    account.weight = weights_.Of(tenant);
    account.virtual_time = std::max(account.virtual_time, floor_);
  }
  ++found->second.requests;
  return found->second;
}

void TenantAccounts::AdvanceFloor() {
  double least = std::numeric_limits<double>::infinity();
  for (const auto& [name, account] : accounts_) {
    if (account.requests > 0) least = std::min(least, account.virtual_time);
  }
  if (least < std::numeric_limits<double>::infinity()) floor_ = std::max(floor_, least);
  // Who is idle and owes nothing would come back as a stranger does.
  for (auto it = accounts_.begin(); it != accounts_.end();) {
    const bool forgotten = it->second.requests == 0 && it->second.virtual_time <= floor_;
    it = forgotten ? accounts_.erase(it) : std::next(it);
  }
}

}  // namespace expertd
