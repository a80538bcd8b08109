// The published layers that the cells of whole layers are measured on.
#pragma once

#include <cstdint>
#include <vector>

#include "tests/bench/cuda/timer.h"

namespace expertd::bench {

struct Layer {
  const char* name;
  std::int64_t e, k, d, f;
};
inline constexpr Layer kLayers[] = {{"mixtral", 8, 2, 4096, 14336},
                                    {"qwen3-30b", 128, 8, 2048, 768},
                                    {"qwen3-235b", 128, 8, 4096, 1536},
                                    {"olmoe", 64, 8, 2048, 1024},
                                    {"deepseek-v3", 256, 8, 7168, 2048}};
inline constexpr std::int64_t kRows[] = {1, 8, 32, 128, 512, 2048, 8192};

// The layers that the command line names; all of them when it names none.
std::vector<Layer> ChosenLayers(int argc, char** argv);

// bf16.
struct Weights {
  testing::DeviceArray<std::byte> gate_up, down;
  explicit Weights(const Layer& l)
      : gate_up(RandomBf16(l.e * 2 * l.f * l.d * 2, 0.02f)), down(RandomBf16(l.e * l.d * l.f * 2, 0.02f)) {}
};

}  // namespace expertd::bench
