widths = [8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192]
out = []
out.append('''// wgmma.mma_async for each width of tokens: d[64, N] += a[64, 16] . b[16, N] by a warpgroup, bf16 in, f32 sums. The
// instruction names its registers one by one, so each width is written out; the table below is all there is to it.
// Written by the generator in this folder's README ("wgmma_shapes"), not by hand.
//
// `b`, and `a` where it is in shared memory, are Operand()s whose lines run along K. With accumulate = 0 the products
// replace d. Lane l of warp w holds rows 16 w + l / 4 and + 8, columns 8 i + 2 (l % 4) and + 1, in d[4 i] .. d[4 i +
// 3].
#pragma once

#include <cstdint>

#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {
  template <int kTokens>
  struct WarpgroupProduct;
''')
def wrap(items, indent, width=118):
    lines, cur = [], indent
    for it in items:
        if len(cur) + len(it) + 1 > width:
            lines.append(cur.rstrip()); cur = indent
        cur += it + ' '
    lines.append(cur.rstrip())
    return '\n'.join(lines)
for n in widths:
    r = n // 2
    regs = [f'%{i}' for i in range(r)]
    def strs(regs, lead):
#chunks of strings
        res = []
        for i in range(0, len(regs), 16):
            res.append('"' + ', '.join(regs[i:i+16]) + (', "' if i + 16 < len(regs) else '"'))
        return '\n        '.join(res)
    outs = wrap([f'"+f"(d[{i}])' + (',' if i + 1 < r else '') for i in range(r)], '        ')
    out.append(f'''template <>
struct WarpgroupProduct<{n}> {{
  __device__ static void FromShared(float (&d)[{r}], std::uint64_t a, std::uint64_t b, int accumulate) {{
    EXPERTD_SM90A(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{r+2}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{"
        {
    strs(regs, '')}
        "}}, %{r}, %{r+1}, p, 1, 1, 0, 0;\\n}}"
        :{
    outs.lstrip() if False else outs [7:]}
        : "l"(a), "l"(b), "r"(accumulate));
  }
}
__device__ static void FromRegisters(float (&d)[{r}], const std::uint32_t (&a)[4], std::uint64_t b, int accumulate) {
  {
    EXPERTD_SM90A(
        "{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{r+5}, 0;\\n"
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{" {
          strs(regs, '')
        } "}}, {{%{r}, %{r+1}, %{r+2}, %{r+3}}}, %{r+4}, p, 1, 1, 0;\\n}}"
        : {outs [7:]}
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));
  }
}
}
}
;
''') out.append('}  // namespace expertd::cuda') open('wgmma_shapes.cuh', 'w').write('\n'.join(out) + '\n')
