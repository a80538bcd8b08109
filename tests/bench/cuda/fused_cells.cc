#include <algorithm>
#include <array>

#include "kernels/cuda/engine/weight_packing.h"
#include "kernels/cuda/hopper/fp8_rows.h"
#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/row_ops.h"
#include "tests/bench/cuda/cells.h"
#include "tests/bench/cuda/layers.h"
#include "tests/gpu/layer_maps.h"
#include "tests/gpu/routed_ids.h"
#include "tests/support/random.h"

namespace expertd::bench {
namespace {

using testing::DeviceArray;

constexpr const char* kTileNames[] = {"some",      "many",       "few fp8",     "some fp8",      "many fp8",
                                      "few mxfp4", "some mxfp4", "many mxfp4",  "some fp8 rows", "many fp8 rows",
                                      "stream",    "stream fp8", "stream mxfp4"};

// A layer's weights on the device, and the bytes of one expert's.
struct FusedWeights {
  cuda::WeightCode code;
  bool packed;
  const void* gate_up;
  const void* down;
  double expert_bytes;
};

// Which experts the rows go to.
struct Routing {
  const char* name;
  std::vector<std::int32_t> (*ids)(std::int64_t n, const Layer& l);
  bool by_expert = true;  // the roof is the sum of the experts' own
};
constexpr Routing kAsPeers = {"", [](std::int64_t n, const Layer& l) { return testing::RoutedIds(n, l.e, l.k); },
                              false};
constexpr Routing kSkewed[] = {
    {" even", kAsPeers.ids},
    {" zipf 1.2", [](std::int64_t n, const Layer& l) { return testing::RoutedIds(n, l.e, l.k, 1.2); }},
    {" same experts", [](std::int64_t n, const Layer& l) {
       std::vector<std::int32_t> ids(static_cast<std::size_t>(n * l.k));
       for (std::size_t slot = 0; slot < ids.size(); ++slot) ids[slot] = static_cast<std::int32_t>(slot % l.k);
       return ids;
     }}};

// A layer's forward of `n` rows as the engine enqueues it: maps, codes of rows, the fused kernel, the combine. What
// comes before, in the engine the kernel that fills slots, also clears the counters.
class FusedCell {
 public:
  FusedCell(const Layer& l, const FusedWeights& weights, std::int64_t n, const Routing& routing)
      : l_(l), weights_(weights), routing_(routing), n_(n), host_ids_(routing.ids(n, l)) {}

  std::int64_t slots() const { return n_ * l_.k; }
  std::int64_t hit() const { return testing::ExpertsHit(host_ids_); }

  void Report(Timer& timer, cuda::FusedTileId tile) const {
    const std::int64_t counter_count = cuda::FusedCounters(tile, slots(), l_.e);
    const DeviceArray<std::int32_t> counters(counter_count);
    const cuda::FusedForwardLaunch launch = Launch(tile, counters);
    const bool fp8_rows = cuda::ShapeOf(tile).fp8_rows();
    timer.Report(
        {.op = "fused tile",
         .shape = std::string(l_.name) + " " + kTileNames[static_cast<int>(tile)] + (weights_.packed ? " packed" : "") +
                  routing_.name,
         .rows = n_,
         .bytes = weights_.expert_bytes * hit() + 4.0 * n_ * l_.d,
         .flops = 6.0 * slots() * l_.f * l_.d,
         .roof = routing_.by_expert ? RoofOfExperts() : 0},
        kReadBandwidth,
        [&](cuda::Stream stream) {
          int error = cuda::LaunchExpertSort(maps_.sort, stream.handle);
          if (error == 0 && fp8_rows) error = cuda::LaunchQuantiseRows(Quantise(), stream.handle);
          if (error == 0) error = cuda::LaunchFusedForward(launch, stream.handle);
          if (error == 0) error = cuda::LaunchGatherReduce(Combine(), stream.handle);
          return cuda::FromCuda(error, "fused tile");
        },
        [&](cuda::Stream stream) {
          const std::size_t bytes = static_cast<std::size_t>(counter_count) * 4;
          return cuda::FromCuda(cudaMemsetAsync(counters.data(), 0, bytes, static_cast<cudaStream_t>(stream.handle)),
                                "counters");
        });
  }

 private:
  // Microseconds if each expert's weights are read or its rows multiplied, whichever takes longer, one after another.
  double RoofOfExperts() const {
    std::vector<double> rows(static_cast<std::size_t>(l_.e));
    for (const std::int32_t id : host_ids_) rows[static_cast<std::size_t>(id)] += 1;
    double seconds = 0;
    for (const double count : rows) {
      const double flops = count * 6.0 * static_cast<double>(l_.f * l_.d);
      if (count > 0) seconds += std::max(weights_.expert_bytes / kReadBandwidth, flops / kBf16Rate);
    }
    return seconds * 1e6;
  }
  cuda::QuantiseRowsLaunch Quantise() const {
    return {.n = n_, .d = l_.d, .from = rows_.data(), .codes = codes_.data(), .scales = row_scales_.data()};
  }
  cuda::FusedForwardLaunch Launch(cuda::FusedTileId tile, const DeviceArray<std::int32_t>& counters) const {
    return {.positions = slots(),
            .experts = l_.e,
            .d = l_.d,
            .f = l_.f,
            .weights = weights_.code,
            .tile = tile,
            .blocks = cuda::CurrentDevice()->multiprocessors,
            .tokens = cuda::UnitTokens(n_),
            .ids = maps_.ids.data(),
            .offsets = maps_.offsets.data(),
            .sorted_slots = maps_.sorted_slots.data(),
            .rows = cuda::ShapeOf(tile).fp8_rows() ? codes_.data() : rows_.data(),
            .rows_divisor = static_cast<int>(l_.k),
            .row_scales = row_scales_.data(),
            .row_scale_pitch = n_,
            .packed = weights_.packed,
            .gate_up = weights_.gate_up,
            .down = weights_.down,
            .hidden = hidden_.data(),
            .hidden_scales = hidden_scales_.data(),
            .slots = results_.data(),
            .counters = counters.data()};
  }
  cuda::GatherReduceLaunch Combine() const {
    return {.n = n_,
            .d = l_.d,
            .k = l_.k,
            .vectorised = true,
            .expert_out = results_.data(),
            .slot_row = maps_.positions.data(),
            .weights = slot_weights_.data(),
            .out = out_.data(),
            .early = true};
  }

  const Layer& l_;
  const FusedWeights& weights_;
  const Routing& routing_;
  const std::int64_t n_;
  const std::vector<std::int32_t> host_ids_;
  const testing::LayerMaps maps_{host_ids_, l_.e};
  const DeviceArray<float> slot_weights_ = RandomRoutingWeights(slots());
  const DeviceArray<std::byte> rows_ = RandomBf16(n_ * l_.d * 2, 1.0f), out_{n_ * l_.d * 2},
                               hidden_{slots() * l_.f * 2}, results_{slots() * l_.d * 2},
                               codes_{n_ * cuda::Fp8RowBytes(l_.d)};
  const DeviceArray<float> row_scales_{n_ * cuda::PackedSteps(l_.d)}, hidden_scales_{slots() * cuda::PackedSteps(l_.f)};
};

// With each tile that may be worth a look.
void FusedTiles(Timer& timer, const Layer& l, const FusedWeights& weights, std::int64_t n) {
  const FusedCell cell(l, weights, n, kAsPeers);
  const std::int64_t per_expert = cuda::CeilDiv(cell.slots(), cell.hit());
  for (int id = 0; id < static_cast<int>(std::size(cuda::kFusedTiles)); ++id) {
    const auto tile = static_cast<cuda::FusedTileId>(id);
    const cuda::FusedTile& shape = cuda::ShapeOf(tile);
    if (shape.weights_code != weights.code) continue;
    if (shape.streams() && cell.slots() > cuda::kStreamPositions) continue;
    if (shape.weights_code != cuda::WeightCode::kBF16 && shape.tokens > 64 && per_expert < 32) continue;
    if (per_expert > shape.tokens * 2 && shape.tokens <= 64) continue;
    cell.Report(timer, tile);
  }
}

// One expert's random codes in a checkpoint's form, packed, and repeated for every expert.
DeviceArray<std::byte> PackedCodes(cuda::WeightCode code, cuda::Packing packing, std::int64_t experts,
                                   std::int64_t rows, std::int64_t in) {
  testing::Random random(7);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(rows * in)), group_scales(codes.size() / 32);
  for (std::uint8_t& byte : codes) byte = static_cast<std::uint8_t>(random.Uniform() * 256) & 0xbf;  // below 2
  for (std::uint8_t& scale : group_scales) scale = static_cast<std::uint8_t>(118 + random.Uniform() * 4);
  const std::vector<float> block_scales(static_cast<std::size_t>(cuda::CeilDiv(rows, 128) * cuda::CeilDiv(in, 128)),
                                        0.02f);
  const bool fp8 = code != cuda::WeightCode::kMxfp4, paired = packing == cuda::Packing::kGateUp;
  const WeightView view = {.data = codes.data(),
                           .dtype = fp8 ? DType::kF8E4M3 : DType::kF4E2M1,
                           .out = paired ? rows / 2 : rows,
                           .in = in,
                           .out_stride = in,
                           .block_scales = block_scales.data(),
                           .block_scale_stride = cuda::CeilDiv(in, 128),
                           .group_scales = group_scales.data(),
                           .group_scale_stride = in / 32};
  WeightView up = view;
  up.data = codes.data() + rows / 2 * in / (fp8 ? 1 : 2);
  const std::array<WeightView, 2> views = {view, up};
  const std::int64_t steps = cuda::PackedSteps(in), bytes = cuda::PackedBytes(code, rows, in);
  std::vector<std::byte> packed(static_cast<std::size_t>(bytes));
  for (std::int64_t i = 0; i < cuda::PackedTiles(rows) * steps; ++i) {
    cuda::PackBlock(code, {views.data(), paired ? 2u : 1u}, packing, i / steps, i % steps,
                    packed.data() + i * cuda::PackedBlock{code}.bytes());
  }
  const DeviceArray<std::byte> one(packed);
  DeviceArray<std::byte> all(experts * bytes);
  for (std::int64_t e = 0; e < experts; ++e) {
    EXPERTD_CHECK_CUDA(cudaMemcpy(all.data() + e * bytes, one.data(), bytes, cudaMemcpyDeviceToDevice));
  }
  return all;
}

void CodeTiles(Timer& timer, const Layer& l, cuda::WeightCode code) {
  const DeviceArray<std::byte> gate_up = PackedCodes(code, cuda::Packing::kGateUp, l.e, 2 * l.f, l.d),
                               down = PackedCodes(code, cuda::Packing::kRows, l.e, l.d, l.f);
  const auto expert_bytes =
      static_cast<double>(cuda::PackedBytes(code, 2 * l.f, l.d) + cuda::PackedBytes(code, l.d, l.f));
  for (const std::int64_t n : kRows) FusedTiles(timer, l, {code, true, gate_up.data(), down.data(), expert_bytes}, n);
}

constexpr Layer kFp8Layers[] = {{"qwen3-30b fp8", 128, 8, 2048, 768}, {"deepseek-v3 fp8", 256, 8, 7168, 2048}};
constexpr Layer kMxfp4Layers[] = {{"gpt-oss-120b", 128, 4, 2880, 2880}, {"gpt-oss-20b", 32, 4, 2880, 2880}};

}  // namespace

void RunCodeTileCells(Timer& timer) {
  for (const Layer& layer : kFp8Layers) CodeTiles(timer, layer, cuda::WeightCode::kFp8);
  for (const Layer& layer : kMxfp4Layers) CodeTiles(timer, layer, cuda::WeightCode::kMxfp4);
}

void RunFp8RowCells(Timer& timer) {
  for (const Layer& layer : kFp8Layers) CodeTiles(timer, layer, cuda::WeightCode::kFp8Both);
}

// Random numbers stay random numbers when they are read as packed.
FusedWeights Bf16Weights(const Layer& l, const Weights& weights, bool packed) {
  return {cuda::WeightCode::kBF16, packed, weights.gate_up.data(), weights.down.data(),
          6.0 * static_cast<double>(l.f * l.d)};
}

void RunFusedTileCells(Timer& timer, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    const Weights weights(layer);
    for (const bool packed : {false, true}) {
      for (const std::int64_t n : kRows) FusedTiles(timer, layer, Bf16Weights(layer, weights, packed), n);
    }
  }
}

void RunSkewCells(Timer& timer, const std::vector<Layer>& layers) {
  for (const Layer& layer : layers) {
    const Weights weights(layer);
    const FusedWeights packed = Bf16Weights(layer, weights, true);
    for (const std::int64_t n : kRows) {
      const cuda::FusedTileId tile = cuda::ChooseFusedTile({n * layer.k, layer.e, layer.d, layer.f});
      for (const Routing& routing : kSkewed) FusedCell(layer, packed, n, routing).Report(timer, tile);
    }
  }
}

}  // namespace expertd::bench
