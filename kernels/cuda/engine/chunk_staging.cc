#include "kernels/cuda/engine/chunk_staging.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/cuda/engine/expert_rows.h"
#include "kernels/cuda/engine/staged_copies.h"

namespace expertd::cuda {
namespace {

std::int64_t AddressOf(const void* data) { return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(data)); }

bool WantsRouting(const Piece& piece) {
  return piece.segment->k == 0 && (piece.segment->routed_ids != nullptr || piece.segment->routed_weights != nullptr);
}

const std::byte* InputOf(const Piece& piece, std::int64_t d) {
  return static_cast<const std::byte*>(piece.segment->input) + piece.first * BytesOf(piece.segment->input_dtype, d);
}
// Where kernels and copies find them: ahead of the batch on the device, or where the caller has them.
const std::byte* RowsOf(const Piece& piece, std::int64_t d) {
  const std::byte* const input = InputOf(piece, d);
  return piece.copy == nullptr ? input : piece.copy->Of(input, piece.in_bytes(d));
}
std::byte* OutputOf(const Piece& piece, std::int64_t d) {
  return static_cast<std::byte*>(piece.segment->output) + piece.first * BytesOf(piece.segment->output_dtype, d);
}

}  // namespace

absl::StatusOr<ChunkStaging> ChunkStaging::Create(std::int64_t bytes) {
  absl::StatusOr<Memory> in = Memory::Allocate(MemoryKind::kPinned, bytes, "staging of inputs");
  if (!in.ok()) return in.status();
  absl::StatusOr<Memory> out = Memory::Allocate(MemoryKind::kPinned, bytes, "staging of outputs");
  if (!out.ok()) return out.status();
  ChunkStaging staging;
  staging.in_ = *std::move(in);
  staging.out_ = *std::move(out);
  return staging;
}

void ChunkStaging::FillTables(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) const {
  const std::int64_t d = layer.spec().hidden_size;
  Scratch scratch(in_.data());
  const ChunkControl control = PlaceControl(chunk, scratch);
  std::byte *buffer_in = in_.data() + memory.control_bytes, *buffer_out = out_.data() + memory.routing_bytes;
  std::int32_t shared = 0;
  for (const Piece& piece : chunk.pieces) {
    const Segment& segment = *piece.segment;
    const bool wants_shared = segment.shared_expert && layer.shared().count > 0;
    const std::int64_t in_bytes = BytesOf(segment.input_dtype, d), out_bytes = BytesOf(segment.output_dtype, d);
    const std::byte* in = RowsOf(piece, d);
    std::byte* out = chunk.recorded ? OutputOf(piece, d) : memory.out + piece.out_place;
    if (chunk.recorded && piece.buffered) {
      std::memcpy(buffer_in, in, static_cast<std::size_t>(piece.in_bytes(d)));
      in = std::exchange(buffer_in, buffer_in + Aligned(piece.in_bytes(d)));
      out = std::exchange(buffer_out, buffer_out + Aligned(piece.out_bytes(d)));
    }
    for (std::int64_t i = 0; i < piece.rows; ++i) {
      const std::int64_t row = piece.row + i;
      if (chunk.recorded) control.in_row[row] = AddressOf(in + i * in_bytes);
      control.out_row[row] = AddressOf(out + i * out_bytes) + (segment.output_dtype == DType::kBF16 ? 1 : 0);
      control.shared_row[row] = wants_shared ? shared : -1;
      if (wants_shared) control.shared_list[shared++] = static_cast<std::int32_t>(row);
      if (segment.k == 0) continue;
      const std::int64_t to = (row - chunk.routed_rows) * chunk.kc, from = (piece.first + i) * segment.k;
      std::copy_n(segment.topk_ids + from, segment.k, control.given_ids + to);
      std::copy_n(segment.topk_weights + from, segment.k, control.given_weights + to);
      std::fill(control.given_ids + to + segment.k, control.given_ids + to + chunk.kc, -1);
      std::fill(control.given_weights + to + segment.k, control.given_weights + to + chunk.kc, 0.0f);
    }
  }
  for (std::int64_t row = chunk.live; row < chunk.n; ++row) {
    control.in_row[row] = control.out_row[row] = 0;
    control.shared_row[row] = -1;
  }
  control.shared_offsets[0] = 0;
  control.shared_offsets[1] = shared;
  control.live[0] = static_cast<std::int32_t>(chunk.live);
}

absl::Status ChunkStaging::AwaitCopies(const Chunk& chunk, Stream stream) {
  for (const Piece& piece : chunk.pieces) {
    if (piece.copy == nullptr) continue;
    if (absl::Status status = piece.copy->Await(stream); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ChunkStaging::FetchRows(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory,
                                     Stream stream) const {
  const std::int64_t row_bytes = BytesOf(chunk.dtype, layer.spec().hidden_size);
  Scratch scratch(in_.data());
  const FetchRowsLaunch launch = {.from = in_.data(),
                                  .to = memory.base,
                                  .bytes = memory.control_bytes,
                                  .n = chunk.n,
                                  .row_bytes = row_bytes,
                                  .vectorised = row_bytes % 16 == 0,
                                  .in_row = PlaceControl(chunk, scratch).in_row,
                                  .x = memory.x};
  return FromCuda(LaunchFetchRows(launch, stream.handle), "rows");
}

absl::Status ChunkStaging::CopyIn(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory,
                                  Stream stream) const {
  const std::int64_t d = layer.spec().hidden_size, row_bytes = BytesOf(chunk.dtype, d);
  // What is buffered and not copied yet, [from, at), and where it goes: at first the tables.
  std::byte *from = in_.data(), *at = from + memory.control_bytes, *to = memory.base;
  const auto copy_buffered = [&] {
    absl::Status status = Copy(to, from, at - from, stream.handle);
    from = at;
    return status;
  };
  for (const Piece& piece : chunk.pieces) {
    std::byte* const rows = memory.x + piece.row * row_bytes;
    const std::int64_t bytes = piece.in_bytes(d);
    if (piece.buffered) {
      if (from == at) to = rows;
      std::memcpy(at, InputOf(piece, d), static_cast<std::size_t>(bytes));
      at += bytes;
      continue;
    }
    absl::Status status = copy_buffered();
    if (status.ok()) status = Copy(rows, RowsOf(piece, d), bytes, stream.handle);
    if (!status.ok()) return status;
  }
  return copy_buffered();
}

absl::Status ChunkStaging::CopyRouting(const Chunk& chunk, const ChunkMemory& memory, Stream stream) const {
  if (std::none_of(chunk.pieces.begin(), chunk.pieces.end(), WantsRouting)) return absl::OkStatus();
  return Copy(out_.data(), memory.routing.ids, memory.routing_bytes, stream.handle);
}

absl::Status ChunkStaging::CopyOut(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory,
                                   Stream stream) const {
  const std::int64_t d = layer.spec().hidden_size;
  absl::Status status = CopyRouting(chunk, memory, stream);
  std::byte* at = out_.data() + memory.routing_bytes;
  for (std::size_t i = 0; i < chunk.pieces.size() && status.ok();) {
    const Piece& first = chunk.pieces[i];
    const std::byte* const from = memory.out + first.out_place;
    if (!first.buffered) {
      status = Copy(OutputOf(first, d), from, first.out_bytes(d), stream.handle);
      ++i;
      continue;
    }
    while (i < chunk.pieces.size() && chunk.pieces[i].buffered) ++i;
    const std::int64_t end = i < chunk.pieces.size() ? chunk.pieces[i].out_place : chunk.out_bytes;
    status = Copy(at, from, end - first.out_place, stream.handle);
    at += end - first.out_place;
  }
  return status;
}

void ChunkStaging::Answer(const CudaLayer& layer, const Chunk& chunk) const {
  const std::int64_t d = layer.spec().hidden_size, k = layer.spec().experts_per_token;
  Scratch scratch(out_.data());
  const ChunkRouting routing = PlaceRouting(chunk, k, scratch);
  const std::byte* at = out_.data() + scratch.used();
  for (const Piece& piece : chunk.pieces) {
    if (piece.buffered) {
      const std::int64_t bytes = piece.out_bytes(d);
      std::memcpy(OutputOf(piece, d), at, static_cast<std::size_t>(bytes));
      at += Aligned(bytes);
    }
    if (!WantsRouting(piece)) continue;
    const Segment& segment = *piece.segment;
    if (segment.routed_ids != nullptr) {
      std::copy_n(routing.ids + piece.row * k, piece.rows * k, segment.routed_ids + piece.first * k);
    }
    if (segment.routed_weights != nullptr) {
      std::copy_n(routing.weights + piece.row * k, piece.rows * k, segment.routed_weights + piece.first * k);
    }
  }
}

}  // namespace expertd::cuda
