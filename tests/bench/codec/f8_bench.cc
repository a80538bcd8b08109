// f8_bench: what e4m3 rows cost in time and in error, beside bf16 rows.
//
// Rows are normal, and once more with one channel in 256 forty times as large, as hidden states of language models
// have. The error of the rows, and of a layer's output that is computed from them: root of the summed squares of the
// difference over that of the bf16 side.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/engine_factory.h"
#include "server/codec/f8_rows.h"
#include "tests/support/random_layer.h"

namespace expertd {
namespace {

constexpr std::int64_t kRows = 16, kHidden = 2048;
constexpr std::size_t kElements = kRows * kHidden;
using Rows = std::vector<std::uint16_t>;

Rows RandomRows(double outlier) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  Rows rows(kElements);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i] = F32ToBf16(normal(random) * (i % 256 == 17 ? static_cast<float>(outlier) : 1.0f));
  }
  return rows;
}

double Error(const Rows& got, const Rows& want) {
  double difference = 0, all = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    const double value = Bf16ToF32(want[i]), delta = Bf16ToF32(got[i]) - value;
    difference += delta * delta;
    all += value * value;
  }
  return std::sqrt(difference / all);
}

// Microseconds of one call, the least of many.
template <class F>
double Time(const F& f) {
  double least = 1e9;
  for (int i = 0; i < 300; ++i) {
    const auto start = std::chrono::steady_clock::now();
    f();
    least =
        std::min(least, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

std::string Encode(Rows rows, std::int64_t block) {
  const auto scales = static_cast<std::size_t>(kRows * ScalesPerRow(kHidden, block)) * sizeof(float);
  std::string wire(kElements + scales, '\0');
  EncodeF8Rows(reinterpret_cast<std::byte*>(rows.data()), kRows, kHidden, block,
               reinterpret_cast<std::byte*>(wire.data() + kElements));
  std::memcpy(wire.data(), rows.data(), kElements);
  return wire;
}

void Decode(const std::string& wire, std::int64_t block, Rows& rows) {
  const absl::string_view slice = wire;
  const absl::Status status = DecodeF8Rows(Slices(&slice, 1), {0, kElements}, {kElements, wire.size() - kElements},
                                           kRows, kHidden, block, reinterpret_cast<std::byte*>(rows.data()));
  if (!status.ok()) std::exit(1);
}

Rows RunLayer(Engine& engine, const Layer& layer, const Rows& in) {
  Rows out(in.size());
  const Segment segment = {.rows = kRows, .input = in.data(), .output = out.data()};
  if (!engine.Run(layer, absl::MakeConstSpan(&segment, 1), nullptr).ok()) std::exit(1);
  return out;
}

int Main() {
  const auto engine = MakeEngine("cpu");
  const auto source = testing::MakeRandomLayer(testing::SimpleSpec(kHidden, 16, 4, 256));
  const auto layer = engine.ok() ? (*engine)->LoadLayer(*source) : engine.status();
  if (!layer.ok()) return 1;
  absl::PrintF("%d rows x %d, bf16: %d bytes\n", kRows, kHidden, kElements * 2);
  absl::PrintF("%-9s %-6s %6s %10s %10s %11s %13s %13s\n", "rows", "scale", "bytes", "encode us", "decode us",
               "rows error", "layer, in", "layer, in+out");
  for (const double outlier : {1.0, 40.0}) {
    const Rows rows = RandomRows(outlier);
    const Rows want = RunLayer(**engine, **layer, rows);
    for (const std::int64_t block : {0, 128}) {
      const std::string wire = Encode(rows, block);
      Rows decoded(kElements), answer(kElements);
      Decode(wire, block, decoded);
      const Rows out = RunLayer(**engine, **layer, decoded);
      Decode(Encode(out, block), block, answer);
      absl::PrintF("%-9s %-6s %6d %10.1f %10.1f %10.2f%% %12.2f%% %12.2f%%\n", outlier == 1 ? "normal" : "outliers",
                   block == 0 ? "row" : "1x128", wire.size(), Time([&] { Encode(rows, block); }),
                   Time([&] { Decode(wire, block, decoded); }), 100 * Error(decoded, rows), 100 * Error(out, want),
                   100 * Error(answer, want));
    }
  }
  return 0;
}

}  // namespace
}  // namespace expertd

int main() { return expertd::Main(); }
