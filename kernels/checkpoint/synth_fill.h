// Random elements of synthetic checkpoints: a function of key and position alone. Private to kernels/checkpoint.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/checkpoint/synth.h"

namespace expertd {

// The bytes of one tensor, any range of them in any order. The weights are normal with deviation sigma, cut into 4096
// equally likely values, which tables turn into the tensor's codes.
class SynthFiller {
 public:
  SynthFiller(const SynthTensor& tensor, std::uint64_t key);

  // Bytes [first, first + out.size()) of the tensor; `first` is a multiple of 16.
  void Fill(std::int64_t first, absl::Span<std::byte> out) const;

 private:
  SynthFill fill_;
  int bytes_each_;  // of a value; 1 for a pair of 4-bit codes
  std::uint64_t key_;
  std::vector<std::uint32_t> codes_;  // the bits of each of the 4096 values
};

}  // namespace expertd
