// Rows as OCP e4m3 codes with f32 scales, as they travel: element = code * scale.
//
// A scale belongs to `block` elements of a row, the last block of a row may be shorter; block = 0: to the whole row.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "server/codec/forward_codec.h"

namespace expertd {

constexpr std::int64_t ScalesPerRow(std::int64_t hidden_size, std::int64_t block) {
  return block == 0 ? 1 : (hidden_size + block - 1) / block;
}

// Decodes [rows, D] codes and their scales, both still in the transport's slices, to `out`, [rows, D] bf16. The product
// is rounded to f32 and then to bf16 (exact when the scale is a power of two); NaN codes become NaN, and a product
// beyond f32 becomes infinite. `codes` and `scales` have the sizes that the shape demands. InvalidArgument naming the
// first scale that is not finite; `out` is then unspecified.
absl::Status DecodeF8Rows(Slices slices, WireRange codes, WireRange scales, std::int64_t rows, std::int64_t hidden_size,
                          std::int64_t block, std::byte* out);

// The arithmetic of EncodeF8Answer: codes to the front of the rows, scales ([rows, ScalesPerRow] f32, not aligned)
// apart.
void EncodeF8Rows(std::byte* rows_data, std::int64_t rows, std::int64_t hidden_size, std::int64_t block,
                  std::byte* scales);

// Quantises [rows, D] bf16 rows to codes and scales, in place: the codes move to the front of the rows, and behind them
// comes ForwardResult's whole scales field (tag, length, scales), as EncodeResponsePrefix promised. `rows_data` has
// room for F8AnswerRoom bytes. Returns how many bytes of it are the answer.
//
// A block's scale is its largest finite magnitude / 448, or 1 where that is zero or too small to divide by. Codes are
// rounded to nearest even: an element is off by at most 1/16 of its magnitude, or by scale / 1024 where it is small.
// NaN stays NaN, and so becomes infinity, which e4m3 does not have.
std::int64_t EncodeF8Answer(std::byte* rows_data, std::int64_t rows, std::int64_t hidden_size, std::int64_t block);
std::int64_t F8AnswerRoom(std::int64_t rows, std::int64_t hidden_size, std::int64_t block);

}  // namespace expertd
