// Loads and stores of N elements as f32: one 16-byte access where N fills it, element by element where N is 1.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

namespace expertd::cuda {

using bf16 = __nv_bfloat16;

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(bf16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T FromFloat(float value) {
  if constexpr (sizeof(T) == 4) return value;
  if constexpr (sizeof(T) == 2) return __float2bfloat16_rn(value);
}

// Two elements rounded to nearest even, `low` at the lower address.
__device__ inline std::uint32_t PackBf16(float low, float high) {
  std::uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// The bits of N elements of T, moved in the widest accesses that fit and kept packed: as an array of elements, the
// compiler would give each its own register.
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  static constexpr int kWords = N * sizeof(T) / 4;  // 0: a single bf16
  std::uint32_t word[kWords > 0 ? kWords : 1];
};
template <>
struct alignas(2) Pack<bf16, 1> {
  std::uint16_t word[1];
};

template <typename T, int N>
__device__ inline Pack<T, N> LoadPack(const T* from) {
  Pack<T, N> pack;
  if constexpr (N * sizeof(T) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(T) / 16); ++i) {
      const uint4 words = reinterpret_cast<const uint4*>(from)[i];
      pack.word[4 * i] = words.x, pack.word[4 * i + 1] = words.y;
      pack.word[4 * i + 2] = words.z, pack.word[4 * i + 3] = words.w;
    }
  } else {
    pack = *reinterpret_cast<const Pack<T, N>*>(from);
  }
  return pack;
}

template <typename T, int N>
__device__ inline void StorePack(T* to, const Pack<T, N>& pack) {
  if constexpr (N * sizeof(T) % 16 == 0) {
#pragma unroll
    for (int i = 0; i < static_cast<int>(N * sizeof(T) / 16); ++i) {
      reinterpret_cast<uint4*>(to)[i] =
          make_uint4(pack.word[4 * i], pack.word[4 * i + 1], pack.word[4 * i + 2], pack.word[4 * i + 3]);
    }
  } else {
    *reinterpret_cast<Pack<T, N>*>(to) = pack;
  }
}

template <typename T, int N>
__device__ inline void Unpack(const Pack<T, N>& pack, float (&to)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (sizeof(T) == 4) {
      to[i] = __uint_as_float(pack.word[i]);
    } else {
      const std::uint32_t word = pack.word[i / 2];
      to[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
    }
  }
}

template <typename T, int N>
__device__ inline Pack<T, N> MakePack(const float (&from)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if constexpr (sizeof(T) == 4) {
      pack.word[i] = __float_as_uint(from[i]);
    } else if constexpr (N == 1) {
      pack.word[0] = __bfloat16_as_ushort(__float2bfloat16_rn(from[0]));
    } else if (i % 2 == 0) {
      pack.word[i / 2] = PackBf16(from[i], from[i + 1]);
    }
  }
  return pack;
}

template <typename T, int N>
__device__ inline void Load(const T* from, float (&to)[N]) {
  Unpack(LoadPack<T, N>(from), to);
}

template <typename T, int N>
__device__ inline void Store(T* to, const float (&from)[N]) {
  StorePack(to, MakePack<T, N>(from));
}

// Quotient and remainder by a launch constant. 64-bit division costs a hundred instructions, and almost every index
// fits in 32 bits.
struct Split {
  std::int64_t quotient, remainder;
};
__device__ inline Split Divide(std::int64_t index, std::int64_t divisor) {
  if (((index | divisor) >> 32) == 0) {
    const auto quotient = static_cast<std::uint32_t>(index) / static_cast<std::uint32_t>(divisor);
    return {quotient, static_cast<std::uint32_t>(index) - quotient * static_cast<std::uint32_t>(divisor)};
  }
  return {index / divisor, index % divisor};
}

// Sum over kLanes neighbouring lanes (all of the warp): a tree over the lanes, neighbours first, so that a lane which
// adds up its own values as the same tree may stand for several lanes.
template <int kLanes = 32>
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

}  // namespace expertd::cuda
