#include "client/cpp/program/bench/check.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_format.h"
#include "client/cpp/program/bench/payload.h"

namespace expertd::client {
namespace {

constexpr std::chrono::seconds kTimeout{60};
constexpr std::int64_t kRowsPerRequest = 4;  // that are also sent one by one
constexpr std::size_t kMaxLines = 20;

struct Alone {
  std::string request;                       // the answer to the whole request
  std::map<std::int64_t, std::string> rows;  // the answers to single rows
};

absl::StatusOr<Alone> SendAlone(const Client& client, const Request& request) {
  Alone alone;
  const auto whole = client.Forward(request, kTimeout);
  if (!whole.ok()) return whole.status();
  alone.request = whole->OutputString();
  const std::int64_t rows = request.head.rows();
  for (std::int64_t i = 0; i < std::min(rows, kRowsPerRequest); ++i) {
    const std::int64_t row = i * rows / std::min(rows, kRowsPerRequest);
    const auto one = client.Forward(OneRow(request, row), kTimeout);
    if (!one.ok()) return one.status();
    alone.rows[row] = one->OutputString();
  }
  return alone;
}

// Compares bytes [begin, begin + wanted.size()) of the answer, which hold `rows` rows from `first_row`.
void Compare(const Sample& sample, const std::string& got, std::size_t begin, const std::string& wanted,
             const char* what, std::int64_t first_row, std::int64_t rows, CheckResult& result) {
  const std::string part = got.substr(std::min(begin, got.size()), wanted.size());
  if (part == wanted) return;
  ++result.differing;
  if (result.differences.size() >= kMaxLines) return;
  const auto at = static_cast<std::size_t>(std::mismatch(part.begin(), part.end(), wanted.begin(), wanted.end()).first -
                                           part.begin());
  const v1::ForwardResult& answer = sample.answer.result();
  const std::size_t row_bytes = std::max<std::size_t>(1, wanted.size() / static_cast<std::size_t>(rows));
  result.differences.push_back(absl::StrFormat(
      "%s/%d, row %d of a request: byte %d of the row differs from the answer to %s alone (it ran in a "
      "batch of %d rows of %d requests; %d bytes against %d)",
      sample.request.head.model(), sample.request.head.layer(), first_row + static_cast<std::int64_t>(at / row_bytes),
      at % row_bytes, what, answer.batch_rows(), answer.batch_requests(), part.size(), wanted.size()));
}

}  // namespace

absl::StatusOr<CheckResult> CheckSamples(const Client& client, const std::vector<Sample>& samples,
                                         const ShowProgress& show) {
  CheckResult result;
  for (const Sample& sample : samples) {
    const auto alone = SendAlone(client, sample.request);
    if (!alone.ok()) return alone.status();
    const std::string got = sample.answer.OutputString();
    ++result.answers;
    Compare(sample, got, 0, alone->request, "the same request", 0, sample.request.head.rows(), result);
    for (const auto& [row, output] : alone->rows) {
      ++result.rows;
      Compare(sample, got, static_cast<std::size_t>(row) * output.size(), output, "that row", row, 1, result);
    }
    show(static_cast<double>(result.answers) / static_cast<double>(samples.size()), "checking");
  }
  return result;
}

}  // namespace expertd::client
