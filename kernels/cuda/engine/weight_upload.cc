#include "kernels/cuda/engine/weight_upload.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/engine/weight_packing.h"
#include "kernels/reference/parallel.h"

namespace expertd::cuda {
namespace {

constexpr std::int64_t kHalfBytes = 16LL << 20;
constexpr std::int64_t kBytesOfOneThread = 1LL << 20;  // below, starting another thread costs more than it saves

// Elements of kBytes each, `stride` of them apart.
template <int kBytes>
void Gather(const std::byte* from, std::int64_t stride, std::int64_t count, std::byte* to) {
  for (std::int64_t i = 0; i < count; ++i) std::memcpy(to + i * kBytes, from + i * stride * kBytes, kBytes);
}

void CopyRow(const WeightView& view, std::int64_t row, std::byte* to) {
  const int bits = BitsOf(view.dtype);
  const auto* const from = static_cast<const std::byte*>(view.data) + row * view.out_stride * bits / 8;
  if (view.in_stride == 1) {
    std::memcpy(to, from, static_cast<std::size_t>(BytesOf(view.dtype, view.in)));
  } else if (bits == 32) {
    Gather<4>(from, view.in_stride, view.in, to);
  } else if (bits == 16) {
    Gather<2>(from, view.in_stride, view.in, to);
  } else {
    Gather<1>(from, view.in_stride, view.in, to);
  }
}

}  // namespace

absl::StatusOr<WeightCode> CodeOf(const WeightView& view, absl::string_view what) {
  switch (view.dtype) {
    case DType::kBF16:
      return WeightCode::kBF16;
    case DType::kF16:
      return WeightCode::kF16;
    case DType::kF32:
      return WeightCode::kF32;
    case DType::kF8E4M3:
      if (view.block_scales != nullptr) return WeightCode::kFp8;
      return absl::InvalidArgumentError(absl::StrCat(what, ": fp8 weights without scales"));
    case DType::kF4E2M1:
      if (view.group_scales != nullptr && view.in % 32 == 0) return WeightCode::kMxfp4;
      return absl::InvalidArgumentError(absl::StrCat(what, ": mxfp4 weights without scales of whole groups of 32"));
    default:
      return absl::InvalidArgumentError(absl::StrCat(what, ": ", DTypeName(view.dtype), " is no type of weights"));
  }
}

std::int64_t CodeRowBytes(WeightCode code, std::int64_t in) {
  switch (code) {
    case WeightCode::kF32:
      return in * 4;
    case WeightCode::kFp8:
      return in;
    case WeightCode::kMxfp4:
      return in / 2;
    default:
      return in * 2;
  }
}

std::int64_t ScaleRowBytes(WeightCode code, std::int64_t in) {
  if (code == WeightCode::kFp8) return CeilDiv(in, 128) * 4;
  return code == WeightCode::kMxfp4 ? in / 32 : 0;
}

absl::StatusOr<WeightUpload> WeightUpload::Create() {
  WeightUpload upload;
  auto staging = Memory::Allocate(MemoryKind::kPinned, 2 * kHalfBytes, "staging of weights");
  auto stream = OwnedStream::Create();
  if (!staging.ok()) return staging.status();
  if (!stream.ok()) return stream.status();
  upload.staging_ = *std::move(staging);
  upload.stream_ = *std::move(stream);
  for (OwnedEvent& event : upload.copied_) {
    auto created = OwnedEvent::Create();
    if (!created.ok()) return created.status();
    event = *std::move(created);
    if (absl::Status status = event.Record(upload.stream_.get()); !status.ok()) return status;
  }
  return upload;
}

absl::Status WeightUpload::Rows(std::byte* to, std::int64_t rows, std::int64_t row_bytes,
                                absl::FunctionRef<void(std::int64_t row, std::byte* place)> write) {
  if (row_bytes == 0) return absl::OkStatus();
  const std::int64_t rows_at_once = kHalfBytes / row_bytes;  // a row is 1 MiB at most (kMaxIntermediateSize)
  for (std::int64_t first = 0; first < rows; first += rows_at_once) {
    const std::int64_t count = std::min(rows_at_once, rows - first);
    std::byte* const half = staging_.data() + half_ * kHalfBytes;
    if (absl::Status status = copied_[half_].Wait(); !status.ok()) return status;
    const std::int64_t rows_of_thread = std::max<std::int64_t>(1, kBytesOfOneThread / row_bytes);
    reference::ParallelFor(CeilDiv(count, rows_of_thread), [&](std::int64_t part) {
      const std::int64_t end = std::min(count, (part + 1) * rows_of_thread);
      for (std::int64_t r = part * rows_of_thread; r < end; ++r) write(first + r, half + r * row_bytes);
    });
    absl::Status status = Copy(to + first * row_bytes, half, count * row_bytes, stream_.get());
    if (status.ok()) status = copied_[half_].Record(stream_.get());
    if (!status.ok()) return status;
    half_ ^= 1;
  }
  return absl::OkStatus();
}

absl::Status WeightUpload::Finish() {
  for (const OwnedEvent& event : copied_) {
    if (absl::Status status = event.Wait(); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WeightUpload::Codes(const WeightView& view, std::byte* to) {
  return Rows(to, view.out, BytesOf(view.dtype, view.in),
              [&](std::int64_t row, std::byte* place) { CopyRow(view, row, place); });
}

absl::Status WeightUpload::Scales(const WeightView& view, std::byte* to) {
  if (view.dtype == DType::kF8E4M3) {
    const std::int64_t bytes = ScaleRowBytes(WeightCode::kFp8, view.in);
    return Rows(to, view.out, bytes, [&](std::int64_t row, std::byte* place) {
      std::memcpy(place, view.block_scales + row / 128 * view.block_scale_stride, static_cast<std::size_t>(bytes));
    });
  }
  if (view.dtype == DType::kF4E2M1) {
    const std::int64_t bytes = ScaleRowBytes(WeightCode::kMxfp4, view.in);
    return Rows(to, view.out, bytes, [&](std::int64_t row, std::byte* place) {
      std::memcpy(place, view.group_scales + row * view.group_scale_stride, static_cast<std::size_t>(bytes));
    });
  }
  return absl::OkStatus();
}

absl::Status WeightUpload::Packed(WeightCode code, absl::Span<const WeightView> views, Packing packing, std::byte* to) {
  const WeightView& first = views.front();
  const std::int64_t steps = PackedSteps(first.in);
  const auto rows = static_cast<std::int64_t>(views.size()) * first.out;
  return Rows(to, PackedTiles(rows) * steps, PackedBlock{code}.bytes(), [&](std::int64_t block, std::byte* place) {
    PackBlock(code, views, packing, block / steps, block % steps, place);
  });
}

absl::Status WeightUpload::Floats(const VectorView& view, std::byte* to) {
  return Rows(to, 1, view.empty() ? 0 : view.size * 4, [&](std::int64_t, std::byte* place) {
    for (std::int64_t i = 0; i < view.size; ++i) {
      const auto value = static_cast<float>(view.At(i));
      std::memcpy(place + i * 4, &value, 4);
    }
  });
}

absl::Status WeightUpload::Floats(const WeightView& view, std::byte* to) {
  return Rows(to, view.out, view.in * 4, [&](std::int64_t row, std::byte* place) {
    for (std::int64_t i = 0; i < view.in; ++i) {
      const auto value = static_cast<float>(view.At(row, i));
      std::memcpy(place + i * 4, &value, 4);
    }
  });
}

}  // namespace expertd::cuda
