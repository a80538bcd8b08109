#!/usr/bin/env python3
"""Writes wgmma_shapes.cuh beside this file: wgmma.mma_async once for each width, because the instruction names its
registers one by one. usage: wgmma_shapes.py && clang-format -i wgmma_shapes.cuh"""
import pathlib

WIDTHS = [8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160]

HEADER = """// wgmma.mma_async for each width of tokens: d[64, N] += a[64, 16] . b[16, N] by a warpgroup, bf16 in, f32 sums. The
// instruction names its registers one by one, so each width is written out. Written by wgmma_shapes.py, not by hand.
//
// a and b are Operand()s whose lines run along K. Lane l of warp w holds rows 16 w + l / 4 and + 8, columns
// 8 i + 2 (l % 4) and + 1, in d[4 i] .. d[4 i + 3].
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

template <int kTokens>
struct WarpgroupProduct;
"""

PRODUCT = """
template <>
struct WarpgroupProduct<{width}> {{
  __device__ static void Add(float (&d)[{sums}], std::uint64_t a, std::uint64_t b) {{
    EXPERTD_SM90A(
        "wgmma.mma_async.sync.aligned.m64n{width}k16.f32.bf16.bf16 {{"
        {names}
        "}}, %{sums}, %{b}, 1, 1, 1, 0, 0;"
        : {operands}
        : "l"(a), "l"(b));
  }}
}};
"""


def product(width):
    sums = width // 2  # of each thread
    names = [f"%{i}" for i in range(sums)]
    lines = [", ".join(names[i : i + 16]) for i in range(0, sums, 16)]
    return PRODUCT.format(
        width=width,
        sums=sums,
        b=sums + 1,
        names="\n        ".join(f'"{line}{", " if line != lines[-1] else ""}"' for line in lines),
        operands=", ".join(f'"+f"(d[{i}])' for i in range(sums)),
    )


text = HEADER + "".join(product(width) for width in WIDTHS) + "\n}  // namespace expertd::cuda\n"
pathlib.Path(__file__).with_name("wgmma_shapes.cuh").write_text(text)
