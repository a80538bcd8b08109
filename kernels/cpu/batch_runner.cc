#include "kernels/cpu/batch_runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace expertd::cpu {
namespace {

constexpr std::int64_t kRowBlock = 128;  // rows whose sums and inputs a core's caches hold beside a panel
constexpr std::int64_t kRowGrain = 8;    // rows of light work that are worth another thread

std::int64_t OddLines(std::int64_t bytes) { return (RoundUp(bytes, 64) / 64 | 1) * 64; }

class Stopwatch {
 public:
  void AddTo(double& seconds) {
    const auto now = std::chrono::steady_clock::now();
    seconds += std::chrono::duration<double>(now - last_).count();
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// C[rows, 64] = bias or zero.
void StartSums(const PackedMatrix& matrix, std::int64_t panel, float* c, std::int64_t pitch, std::int64_t rows) {
  for (std::int64_t r = 0; r < rows; ++r) {
    if (matrix.bias == nullptr) {
      std::memset(c + r * pitch, 0, kPanelOuts * sizeof(float));
    } else {
      std::memcpy(c + r * pitch, matrix.bias + panel * kPanelOuts, kPanelOuts * sizeof(float));
    }
  }
}

const std::byte* InputRow(const Segment& segment, std::int64_t index, std::int64_t d) {
  return static_cast<const std::byte*>(segment.input) + BytesOf(segment.input_dtype, d) * index;
}

bool UsesShared(const CpuLayer& layer, const Segment& segment) {
  return segment.shared_expert && layer.shared_index() >= 0;
}

}  // namespace

ChunkShape ShapeFor(const CpuLayer& layer, DType rows) {
  const LayerSpec& spec = layer.spec();
  const std::int64_t d = PaddedK(spec.hidden_size);
  const std::int64_t f = PaddedK(std::max(spec.intermediate_size, spec.shared_intermediate_size));
  ChunkShape shape;
  shape.bf16 = rows == DType::kBF16 && layer.native_bf16();
  const std::int64_t element = shape.bf16 ? 2 : 4;
  shape.x_pitch = OddLines(d * element);
  shape.h_pitch = OddLines(f * element);
  shape.y_pitch = OddLines(RoundUp(spec.hidden_size, kPanelOuts) * 4);
  shape.wide_pitch = OddLines(d * 4);
  shape.logits_pitch = OddLines(RoundUp(spec.num_experts, kPanelOuts) * 4);
  return shape;
}

std::int64_t BatchRunner::MinimumWorkspace(const CpuLayer& layer) {
  const ChunkShape shape = ShapeFor(layer, DType::kF32);
  return shape.row_bytes() + (kMaxExpertsPerToken + 1) * shape.slot_bytes();
}

void BatchRunner::Run(const CpuLayer& layer, absl::Span<const Segment> segments, StageTimes* times) {
  StageTimes unused;
  for (DType dtype : {DType::kBF16, DType::kF32}) {
    RunRowsOf(layer, segments, dtype, times == nullptr ? &unused : times);
  }
}

void BatchRunner::RunRowsOf(const CpuLayer& layer, absl::Span<const Segment> segments, DType dtype, StageTimes* times) {
  const ChunkShape shape = ShapeFor(layer, dtype);
  const std::int64_t capacity = workspace_bytes();
  rows_.clear();
  slots_.clear();
  for (const Segment& segment : segments) {
    if (segment.input_dtype != dtype) continue;
    const std::int64_t slots =
        (segment.k > 0 ? segment.k : layer.spec().experts_per_token) + (UsesShared(layer, segment) ? 1 : 0);
    for (std::int64_t i = 0; i < segment.rows; ++i) {
      const std::int64_t rows_then = static_cast<std::int64_t>(rows_.size()) + 1;
      const std::int64_t slots_then = static_cast<std::int64_t>(slots_.size()) + slots;
      if (rows_then * shape.row_bytes() + slots_then * shape.slot_bytes() > capacity) RunChunk(layer, shape, times);
      AddRow(layer, segment, i);
    }
  }
  RunChunk(layer, shape, times);
}

void BatchRunner::AddRow(const CpuLayer& layer, const Segment& segment, std::int64_t index) {
  const LayerSpec& spec = layer.spec();
  Row row = {.segment = &segment,
             .index = index,
             .first_slot = static_cast<std::int64_t>(slots_.size()),
             .routed = segment.k > 0 ? segment.k : spec.experts_per_token};
  row.slots = row.routed + (UsesShared(layer, segment) ? 1 : 0);
  slots_.resize(slots_.size() + static_cast<std::size_t>(row.slots));
  rows_.push_back(row);
}

void BatchRunner::RunChunk(const CpuLayer& layer, const ChunkShape& shape, StageTimes* times) {
  if (rows_.empty()) return;
  Stopwatch watch;
  const Chunk chunk = Carve(layer, shape);
  Widen(chunk);
  watch.AddTo(times->stage_in);
  Route(chunk);
  watch.AddTo(times->route);
  SortSlots(chunk);
  Gather(chunk);
  GateUp(chunk);
  Down(chunk);
  watch.AddTo(times->gemm);
  Combine(chunk);
  watch.AddTo(times->combine);
  rows_.clear();
  slots_.clear();
}

BatchRunner::Chunk BatchRunner::Carve(const CpuLayer& layer, const ChunkShape& shape) const {
  Chunk chunk = {.layer = &layer, .shape = shape};
  std::byte* at = workspace_.data();
  const auto rows = static_cast<std::int64_t>(rows_.size());
  const auto slots = static_cast<std::int64_t>(slots_.size());
  const auto take = [&at](std::int64_t bytes) { return std::exchange(at, at + bytes); };
  chunk.wide = take(rows * shape.wide_pitch);
  chunk.logits = take(rows * shape.logits_pitch);
  chunk.gates = take(rows * shape.logits_pitch);
  chunk.x = take(slots * shape.x_pitch);
  chunk.h = take(slots * shape.h_pitch);
  chunk.y = take(slots * shape.y_pitch);
  return chunk;
}

bool BatchRunner::AnyServerRouted() const {
  return std::any_of(rows_.begin(), rows_.end(), [](const Row& row) { return row.segment->k == 0; });
}

// Rows in f32, for whatever computes in f32: the router, the shared gate, and products without bf16.
void BatchRunner::Widen(const Chunk& chunk) {
  const LayerSpec& spec = chunk.layer->spec();
  const bool gated = spec.shared_gated && chunk.layer->shared_index() >= 0;
  if (chunk.shape.bf16 && !gated && !AnyServerRouted()) return;
  const std::int64_t d = spec.hidden_size;
  pool_.ParallelFor(static_cast<std::int64_t>(rows_.size()), kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      auto* out = reinterpret_cast<float*>(chunk.wide + r * chunk.shape.wide_pitch);
      const Segment& segment = *rows_[r].segment;
      kernels_.convert({.in = InputRow(segment, rows_[r].index, d),
                        .out = out,
                        .in_bf16 = segment.input_dtype == DType::kBF16,
                        .n = d});
      std::fill(out + d, out + PaddedK(d), 0.0f);
    }
  });
}

// out [rows, logits_pitch] = wide rows . matrix^T.
void BatchRunner::RunMatrix(const PackedMatrix& matrix, const Chunk& chunk, std::byte* out) {
  const auto rows = static_cast<std::int64_t>(rows_.size());
  const std::int64_t blocks = RoundUp(rows, kRowBlock) / kRowBlock;
  const std::int64_t pitch = chunk.shape.logits_pitch / 4;
  pool_.ParallelFor(blocks * matrix.panels, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t unit = begin; unit < end; ++unit) {
      const std::int64_t panel = unit % matrix.panels, first = unit / matrix.panels * kRowBlock;
      const std::int64_t count = std::min(kRowBlock, rows - first);
      float* c = reinterpret_cast<float*>(out) + first * pitch + panel * kPanelOuts;
      StartSums(matrix, panel, c, pitch, count);
      kernels_.f32_rows[static_cast<int>(matrix.format)]({.panel = matrix.panel(panel),
                                                          .k = PaddedK(matrix.k),
                                                          .rows = chunk.wide + first * chunk.shape.wide_pitch,
                                                          .row_pitch = chunk.shape.wide_pitch,
                                                          .m = count,
                                                          .c = c,
                                                          .c_pitch = pitch});
    }
  });
}

void BatchRunner::Route(const Chunk& chunk) {
  const CpuLayer& layer = *chunk.layer;
  if (AnyServerRouted()) RunMatrix(layer.router(), chunk, chunk.logits);
  if (layer.spec().shared_gated && layer.shared_index() >= 0) RunMatrix(layer.shared_gate(), chunk, chunk.gates);
  pool_.ParallelFor(static_cast<std::int64_t>(rows_.size()), kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    RoutingScratch scratch;
    for (std::int64_t r = begin; r < end; ++r) RouteOne(chunk, r, scratch);
  });
}

// Fills the slots of a row: the router's choice or the caller's, then the shared expert.
void BatchRunner::RouteOne(const Chunk& chunk, std::int64_t r, RoutingScratch& scratch) {
  const CpuLayer& layer = *chunk.layer;
  const LayerSpec& spec = layer.spec();
  const Row& row = rows_[r];
  const Segment& segment = *row.segment;
  std::int32_t own_ids[kMaxExpertsPerToken];
  float own_weights[kMaxExpertsPerToken];
  const std::int32_t* ids = own_ids;
  const float* weights = own_weights;
  if (segment.k > 0) {
    ids = segment.topk_ids + row.index * segment.k;
    weights = segment.topk_weights + row.index * segment.k;
  } else {
    const auto* logits = reinterpret_cast<const float*>(chunk.logits + r * chunk.shape.logits_pitch);
    RouteRow(spec, logits, layer.correction_bias(), scratch, own_ids, own_weights);
    const std::int64_t at = row.index * row.routed;
    if (segment.routed_ids != nullptr) std::copy_n(ids, row.routed, segment.routed_ids + at);
    if (segment.routed_weights != nullptr) std::copy_n(weights, row.routed, segment.routed_weights + at);
  }
  for (std::int64_t k = 0; k < row.routed; ++k) {
    Slot& slot = slots_[row.first_slot + k];
    const std::int64_t held = ids[k] - spec.first_expert;
    if (ids[k] < 0 || held < 0 || held >= spec.held_experts) continue;
    const bool on_input = spec.routing.weight_on_input;
    slot = {.expert = held, .weight = on_input ? 1.0f : weights[k], .input_scale = on_input ? weights[k] : 1.0f};
  }
  if (row.slots == row.routed) return;
  const float gate = *reinterpret_cast<const float*>(chunk.gates + r * chunk.shape.logits_pitch);
  const double weight = spec.shared_gated ? 1.0 / (1.0 + std::exp(-static_cast<double>(gate))) : 1.0;
  slots_[row.first_slot + row.routed] = {.expert = layer.shared_index(), .weight = static_cast<float>(weight)};
}

// Positions by expert, in the order of rows within one.
void BatchRunner::SortSlots(const Chunk& chunk) {
  const std::vector<PackedExpert>& experts = chunk.layer->experts();
  expert_first_.assign(experts.size() + 1, 0);
  for (const Slot& slot : slots_) {
    if (slot.expert >= 0) ++expert_first_[slot.expert + 1];
  }
  active_.clear();
  for (std::size_t e = 0; e < experts.size(); ++e) {
    const std::int64_t count = expert_first_[e + 1];
    expert_first_[e + 1] += expert_first_[e];
    if (count > 0) active_.push_back({.weights = &experts[e], .first = expert_first_[e], .count = count});
  }
  slot_row_.resize(static_cast<std::size_t>(expert_first_.back()));
  slot_at_.resize(slot_row_.size());
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    for (std::int64_t s = rows_[r].first_slot; s < rows_[r].first_slot + rows_[r].slots; ++s) {
      if (slots_[s].expert < 0) continue;
      slots_[s].position = expert_first_[slots_[s].expert]++;
      slot_row_[slots_[s].position] = static_cast<std::int64_t>(r);
      slot_at_[slots_[s].position] = s;
    }
  }
}

// Every slot's input, in the order of experts, padded for the kernels.
void BatchRunner::Gather(const Chunk& chunk) {
  const std::int64_t d = chunk.layer->spec().hidden_size;
  const std::int64_t element = chunk.shape.bf16 ? 2 : 4;
  pool_.ParallelFor(static_cast<std::int64_t>(slot_row_.size()), kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t p = begin; p < end; ++p) {
      const Row& row = rows_[slot_row_[p]];
      const float scale = slots_[slot_at_[p]].input_scale;
      const std::byte* in =
          chunk.shape.bf16 ? InputRow(*row.segment, row.index, d) : chunk.wide + slot_row_[p] * chunk.shape.wide_pitch;
      std::byte* out = chunk.x + p * chunk.shape.x_pitch;
      if (scale == 1.0f) {
        std::memcpy(out, in, static_cast<std::size_t>(d * element));
      } else {
        kernels_.convert(
            {.in = in, .out = out, .in_bf16 = chunk.shape.bf16, .out_bf16 = chunk.shape.bf16, .scale = scale, .n = d});
      }
      std::memset(out + d * element, 0, static_cast<std::size_t>((PaddedK(d) - d) * element));
    }
  });
}

// Shares out the panels of all active experts, so that one row on one expert keeps every thread busy, too.
void BatchRunner::ForEachPanel(std::int64_t (*panels)(const PackedExpert&),
                               absl::FunctionRef<void(const ActiveExpert&, std::int64_t)> work) {
  first_panel_.assign(1, 0);
  for (const ActiveExpert& expert : active_) first_panel_.push_back(first_panel_.back() + panels(*expert.weights));
  pool_.ParallelFor(first_panel_.back(), 1, [&](std::int64_t begin, std::int64_t end) {
    std::int64_t e = std::upper_bound(first_panel_.begin(), first_panel_.end(), begin) - first_panel_.begin() - 1;
    for (std::int64_t unit = begin; unit < end; ++unit) {
      if (unit == first_panel_[e + 1]) ++e;
      work(active_[e], unit - first_panel_[e]);
    }
  });
}

void BatchRunner::GateUp(const Chunk& chunk) {
  const LayerSpec& spec = chunk.layer->spec();
  const ChunkShape& shape = chunk.shape;
  const auto panels = [](const PackedExpert& expert) { return expert.gate_up.panels; };
  ForEachPanel(panels, [&](const ActiveExpert& expert, std::int64_t panel) {
    const PackedMatrix& matrix = expert.weights->gate_up;
    const PanelFunction product =
        (shape.bf16 ? kernels_.bf16_rows : kernels_.f32_rows)[static_cast<int>(matrix.format)];
    alignas(64) float c[kRowBlock * kPanelOuts];
    for (std::int64_t first = 0; first < expert.count; first += kRowBlock) {
      const std::int64_t count = std::min(kRowBlock, expert.count - first);
      StartSums(matrix, panel, c, kPanelOuts, count);
      product({.panel = matrix.panel(panel),
               .k = PaddedK(matrix.k),
               .rows = chunk.x + (expert.first + first) * shape.x_pitch,
               .row_pitch = shape.x_pitch,
               .m = count,
               .c = c,
               .c_pitch = kPanelOuts});
      kernels_.activate(
          {.c = c,
           .m = count,
           .activation = static_cast<int>(spec.activation),
           .limit = spec.swiglu_limit,
           .alpha = spec.swiglu_alpha,
           .h = chunk.h + (expert.first + first) * shape.h_pitch + panel * (kPanelOuts / 2) * (shape.bf16 ? 2 : 4),
           .h_pitch = shape.h_pitch,
           .h_bf16 = shape.bf16});
    }
  });
}

void BatchRunner::Down(const Chunk& chunk) {
  const ChunkShape& shape = chunk.shape;
  const auto panels = [](const PackedExpert& expert) { return expert.down.panels; };
  ForEachPanel(panels, [&](const ActiveExpert& expert, std::int64_t panel) {
    const PackedMatrix& matrix = expert.weights->down;
    const PanelFunction product =
        (shape.bf16 ? kernels_.bf16_rows : kernels_.f32_rows)[static_cast<int>(matrix.format)];
    for (std::int64_t first = 0; first < expert.count; first += kRowBlock) {
      const std::int64_t count = std::min(kRowBlock, expert.count - first);
      float* c = reinterpret_cast<float*>(chunk.y + (expert.first + first) * shape.y_pitch) + panel * kPanelOuts;
      StartSums(matrix, panel, c, shape.y_pitch / 4, count);
      product({.panel = matrix.panel(panel),
               .k = PaddedK(matrix.k),
               .rows = chunk.h + (expert.first + first) * shape.h_pitch,
               .row_pitch = shape.h_pitch,
               .m = count,
               .c = c,
               .c_pitch = shape.y_pitch / 4});
    }
  });
}

void BatchRunner::Combine(const Chunk& chunk) {
  const std::int64_t d = chunk.layer->spec().hidden_size;
  pool_.ParallelFor(static_cast<std::int64_t>(rows_.size()), kRowGrain, [&](std::int64_t begin, std::int64_t end) {
    const float* terms[kMaxExpertsPerToken + 1];
    float weights[kMaxExpertsPerToken + 1];
    for (std::int64_t r = begin; r < end; ++r) {
      const Row& row = rows_[r];
      std::int64_t count = 0;
      for (std::int64_t s = row.first_slot; s < row.first_slot + row.slots; ++s) {
        if (slots_[s].position < 0) continue;
        terms[count] = reinterpret_cast<const float*>(chunk.y + slots_[s].position * chunk.shape.y_pitch);
        weights[count++] = slots_[s].weight;
      }
      const Segment& segment = *row.segment;
      kernels_.combine({.terms = terms,
                        .weights = weights,
                        .count = count,
                        .d = d,
                        .out = static_cast<std::byte*>(segment.output) + BytesOf(segment.output_dtype, d) * row.index,
                        .out_bf16 = segment.output_dtype == DType::kBF16});
    }
  });
}

}  // namespace expertd::cpu
