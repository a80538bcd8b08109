#include "tests/bench/cpu/ceilings.h"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <dnnl.hpp>
#include <limits>
#include <thread>
#include <unordered_map>
#include <vector>

#include "kernels/cpu/huge_buffer.h"
#include "kernels/cpu/worker_pool.h"

namespace expertd::bench {
namespace {

double SecondsOf(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Reads `lines` cache lines, one vector each where the processor has such, and asks for each 8 KiB ahead: what reads
// fastest here. The compiler makes a version for each processor.
__attribute__((target_clones("avx512f", "avx2", "default"))) std::uint64_t Sum(const std::uint64_t* data,
                                                                               std::size_t lines) {
  std::uint64_t sums[8] = {};
  for (std::size_t line = 0; line < lines; ++line, data += 8) {
    __builtin_prefetch(data + 1024);
    for (int i = 0; i < 8; ++i) sums[i] += data[i];
  }
  return sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

}  // namespace

double ReadBandwidth(int threads, int passes) {
  constexpr std::size_t kBytes = std::size_t{3} << 29, kPiece = std::size_t{1} << 20;
  auto buffer = cpu::HugeBuffer::Allocate(kBytes);
  if (!buffer.ok()) return 0.0;
  std::memset(buffer->data(), 1, kBytes);
  cpu::WorkerPool pool(threads);
  volatile std::uint64_t sink = 0;
  double best = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass < passes; ++pass) {
    best = std::min(best, SecondsOf([&] {
                      pool.ParallelFor(kBytes / kPiece, 1, [&](std::int64_t begin, std::int64_t end) {
                        sink = Sum(reinterpret_cast<const std::uint64_t*>(buffer->data() + begin * kPiece),
                                   (end - begin) * kPiece / 64);
                      });
                    }));
  }
  return kBytes / best;
}

double DnnlBf16MatmulRate(int passes) {
  using dnnl::memory;
  struct Shape {
    std::int64_t m, n, k;
  };
  double best = 0.0;
  try {
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    for (const Shape& s : {Shape{1024, 4096, 4096}, Shape{2048, 2048, 2048}, Shape{4096, 4096, 1024}}) {
      const memory::desc rows({s.m, s.k}, memory::data_type::bf16, memory::format_tag::ab);
      const memory::desc weights({s.k, s.n}, memory::data_type::bf16, memory::format_tag::any);
      const memory::desc out({s.m, s.n}, memory::data_type::bf16, memory::format_tag::ab);
#if DNNL_VERSION_MAJOR >= 3
      const dnnl::matmul::primitive_desc description(engine, rows, weights, out);
#else
      const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(rows, weights, out), engine);
#endif
      memory a(description.src_desc(), engine), b(description.weights_desc(), engine),
          c(description.dst_desc(), engine);
      for (memory* operand : {&a, &b}) std::memset(operand->get_data_handle(), 0x3c, operand->get_desc().get_size());
      const dnnl::matmul matmul(description);
      for (int pass = 0; pass < passes; ++pass) {
        const double seconds = SecondsOf([&] {
          matmul.execute(stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
          stream.wait();
        });
        best = std::max(best, 2.0 * static_cast<double>(s.m * s.n * s.k) / seconds);
      }
    }
  } catch (const dnnl::error&) {
    return 0.0;
  }
  return best;
}

}  // namespace expertd::bench
