#include "server/scheduler/batch_runner.h"

#include <algorithm>
#include <cstddef>
#include <vector>

namespace expertd {
namespace {

void SetStatus(absl::Span<Piece> pieces, const absl::Status& status) {
  for (Piece& piece : pieces) piece.status = status;
}

class Runner {
 public:
  Runner(Engine& engine, const Layer& layer, BatchDone done) : engine_(engine), layer_(layer), done_(done) {}

  // Leaves each piece with its status; returns Internal when the device is lost, else ok.
  absl::Status Run(absl::Span<Piece> pieces) {
    const absl::Status status = Try(pieces);
    if (status.ok() || absl::IsInternal(status)) {
      SetStatus(pieces, status);
      return status;
    }
    if (pieces.size() > 1) return RunHalves(pieces.first(pieces.size() / 2), pieces.subspan(pieces.size() / 2));
    if (absl::IsResourceExhausted(status) && pieces[0].rows > 1) return RunRowHalves(pieces[0]);
    pieces[0].status = status;
    return absl::OkStatus();
  }

 private:
  absl::Status Try(absl::Span<Piece> pieces) {
    segments_.clear();
    std::int64_t rows = 0;
    for (const Piece& piece : pieces) {
      segments_.push_back(SegmentOf(piece));
      rows += piece.rows;
    }
    StageTimes stages;
    absl::Status status = engine_.Run(layer_, segments_, &stages);
    if (!status.ok()) return status;
    const std::int64_t requests = static_cast<std::int64_t>(pieces.size());
    for (Piece& piece : pieces) {
      piece.stages = stages;
      piece.batch_rows = rows;
      piece.batch_requests = requests;
    }
    done_(rows, requests, stages);
    return status;
  }

  absl::Status RunHalves(absl::Span<Piece> first, absl::Span<Piece> second) {
    const absl::Status lost = Run(first);
    if (!lost.ok()) {
      SetStatus(second, lost);
      return lost;
    }
    return Run(second);
  }

  // The halves become one piece again. Half an answer is none: the second half is not run when the first has failed.
  absl::Status RunRowHalves(Piece& piece) {
    const std::int64_t cut = piece.rows / 2;
    Piece halves[] = {
        {.job = piece.job, .first_row = piece.first_row, .rows = cut, .staged = piece.staged},
        {.job = piece.job, .first_row = piece.first_row + cut, .rows = piece.rows - cut, .staged = piece.staged}};
    absl::Status lost;
    for (Piece& half : halves) {
      lost = Run(absl::MakeSpan(&half, 1));
      piece.status = half.status;
      piece.stages = piece.stages + half.stages;
      piece.batch_rows = std::max(piece.batch_rows, half.batch_rows);
      piece.batch_requests = half.batch_requests;
      if (!half.status.ok()) break;
    }
    return lost;
  }

  Engine& engine_;
  const Layer& layer_;
  const BatchDone done_;
  std::vector<Segment> segments_;
};

}  // namespace

StageTimes operator+(const StageTimes& a, const StageTimes& b) {
  return {.stage_in = a.stage_in + b.stage_in,
          .route = a.route + b.route,
          .gemm = a.gemm + b.gemm,
          .combine = a.combine + b.combine,
          .stage_out = a.stage_out + b.stage_out};
}

Segment SegmentOf(const Piece& piece) {
  const Job& job = *piece.job;
  const std::int64_t first_row = piece.first_row;
  const LayerSpec& spec = job.layer->spec();
  Segment segment{.rows = piece.rows,
                  .input = job.input.data() + BytesOf(job.input_dtype, first_row * spec.hidden_size),
                  .output = job.output.data() + BytesOf(job.output_dtype, first_row * spec.hidden_size),
                  .input_dtype = job.input_dtype,
                  .output_dtype = job.output_dtype,
                  .shared_expert = job.shared_expert,
                  .on_device = job.on_device,
                  .staged = piece.staged.get(),
                  .k = job.k};
  if (job.k == 0 && !job.return_routing) return segment;
  const std::int64_t k = job.k > 0 ? job.k : spec.experts_per_token;
  auto* ids = reinterpret_cast<std::int32_t*>(job.routing.data());
  auto* weights = reinterpret_cast<float*>(ids + job.rows * k);
  if (job.k > 0) {
    segment.topk_ids = ids + first_row * k;
    segment.topk_weights = weights + first_row * k;
  } else {
    segment.routed_ids = ids + first_row * k;
    segment.routed_weights = weights + first_row * k;
  }
  return segment;
}

absl::Status RunBatch(Engine& engine, const Layer& layer, absl::Span<Piece> pieces, BatchDone done) {
  return Runner(engine, layer, done).Run(pieces);
}

}  // namespace expertd
