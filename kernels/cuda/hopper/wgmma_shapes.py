#!/usr/bin/env python3
"""Writes wgmma_shapes.cuh beside this file: wgmma.mma_async once for each width, because the instruction names its
registers one by one. usage: wgmma_shapes.py && clang-format -i wgmma_shapes.cuh"""
import pathlib

WIDTHS = [8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160]
FP8_WIDTHS = [8, 16, 32, 48, 64, 80, 96, 112, 128]
REGISTER_WIDTHS = [32, 64, 128]  # of a from registers: those of consumer.cuh above kFewTokens

HEADER = """// wgmma.mma_async for each width of tokens: d[64, N] += a[64, 16] . b[16, N] by a warpgroup, bf16 in, f32 sums; or 32
// of K at once, e4m3 in. The instruction names its registers one by one, so each width is written out. Written by
// wgmma_shapes.py, not by hand.
//
// b is an Operand() whose lines run along K; a is another, or in registers: of lane l, rows l / 4 and + 8 of its warp's
// sixteen, elements 2 (l % 4) and + 1, then of both rows those 8 further on. Without kKeep d is overwritten. Lane l of warp w holds rows 16 w + l / 4 and + 8, columns
// 8 i + 2 (l % 4) and + 1, in d[4 i] .. d[4 i + 3].
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

template <int kTokens>
struct WarpgroupProduct;
template <int kTokens>
struct Fp8Product;
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
{from_registers}}};
"""

FROM_REGISTERS = """  template <bool kKeep>
  __device__ static void Add(float (&d)[{sums}], const std::uint32_t (&a)[4], std::uint64_t b) {{
    EXPERTD_SM90A(
        "wgmma.mma_async.sync.aligned.m64n{width}k16.f32.bf16.bf16 {{"
        {names}
        "}}, {{%{sums}, %{a1}, %{a2}, %{a3}}}, %{b}, %{keep}, 1, 1, 0;"
        : {operands}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kKeep ? 1 : 0));
  }}
"""


FP8 = """
template <>
struct Fp8Product<{width}> {{
  template <bool kKeep>
  __device__ static void Add(float (&d)[{sums}], std::uint64_t a, std::uint64_t b) {{
    EXPERTD_SM90A(
        "wgmma.mma_async.sync.aligned.m64n{width}k32.f32.e4m3.e4m3 {{"
        {names}
        "}}, %{sums}, %{b}, %{keep}, 1, 1;"
        : {operands}
        : "l"(a), "l"(b), "n"(kKeep ? 1 : 0));
  }}
}};
"""


def product(width, fp8=False):
    sums = width // 2  # of each thread
    names = [f"%{i}" for i in range(sums)]
    lines = [", ".join(names[i : i + 16]) for i in range(0, sums, 16)]
    common = {
        "width": width,
        "sums": sums,
        "names": "\n        ".join(f'"{line}{", " if line != lines[-1] else ""}"' for line in lines),
        "operands": ", ".join(f'"+f"(d[{i}])' for i in range(sums)),
    }
    if fp8:
        return FP8.format(b=sums + 1, keep=sums + 2, **common)
    a1, a2, a3, b, keep = range(sums + 1, sums + 6)
    from_registers = FROM_REGISTERS.format(a1=a1, a2=a2, a3=a3, b=b, keep=keep, **common)
    return PRODUCT.format(b=a1, from_registers=from_registers if width in REGISTER_WIDTHS else "", **common)


text = HEADER + "".join(product(width) for width in WIDTHS) + "".join(product(width, fp8=True) for width in FP8_WIDTHS) + "\n}  // namespace expertd::cuda\n"
pathlib.Path(__file__).with_name("wgmma_shapes.cuh").write_text(text)
