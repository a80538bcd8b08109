#include "tests/contract/engines.h"

#include <iostream>

#include "kernels/cpu/cpu_engine.h"
#include "tests/support/reference_engine.h"

namespace expertd::contract {
namespace {

absl::StatusOr<std::unique_ptr<Engine>> MakeReference(const EngineOptions& options) {
  testing::ReferenceEngineOptions reference;
  if (options.max_batch_rows != 0) reference.max_batch_rows = options.max_batch_rows;
  if (options.row_buffer_bytes != 0) reference.row_buffer_bytes = static_cast<std::size_t>(options.row_buffer_bytes);
  return testing::MakeReferenceEngine(reference);
}

EngineCase CpuEngine(const std::string& isa) {
  return {"cpu_" + isa, [isa](const EngineOptions& options) {
            CpuEngineOptions cpu;
            cpu.isa = isa;
            cpu.threads = options.threads == 0 ? 2 : options.threads;
            if (options.max_batch_rows != 0) cpu.max_batch_rows = options.max_batch_rows;
            if (options.row_buffer_bytes != 0) cpu.row_buffer_bytes = options.row_buffer_bytes;
            return MakeCpuEngine(cpu);
          }};
}

std::vector<EngineCase> FindEngines() {
  std::vector<EngineCase> engines;
  for (const char* isa : {"avx2", "avx512", "avx512bf16", "amx"}) {
    EngineCase engine = CpuEngine(isa);
    if (const auto made = engine.make({}); made.ok()) {
      engines.push_back(engine);
    } else {
      std::cerr << "not run on this machine: " << engine.name << ": " << made.status().message() << "\n";
    }
  }
  const EngineCase cuda = {"cuda_0", [](const EngineOptions& options) { return MakeEngine("cuda:0", options); }};
  if (const auto made = cuda.make({}); made.ok()) {
    engines.push_back(cuda);
  } else {
    std::cerr << "not run on this machine: " << cuda.name << ": " << made.status().message() << "\n";
  }
  return engines;
}

}  // namespace

const std::vector<EngineCase>& Engines() {
  static const std::vector<EngineCase> engines = FindEngines();
  return engines;
}

std::vector<EngineCase> ReferenceAndEngines() {
  std::vector<EngineCase> engines = {{"reference", MakeReference}};
  engines.insert(engines.end(), Engines().begin(), Engines().end());
  return engines;
}

}  // namespace expertd::contract
