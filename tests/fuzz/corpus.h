// Inputs through the fuzz target that a test program is linked with: fuzzing's finds as an ordinary test for every
// compiler.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace expertd::testing {

// The target aborts when something does not hold.
inline void Replay(const std::string& input) {
  EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size()), 0);
}

inline std::string ReadBytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Every file of EXPERTD_FUZZ_CORPUS.
inline void ReplayCorpus() {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(EXPERTD_FUZZ_CORPUS)) {
    SCOPED_TRACE(entry.path());
    Replay(ReadBytes(entry.path()));
    ++files;
  }
  EXPECT_GT(files, 0) << EXPERTD_FUZZ_CORPUS;
}

}  // namespace expertd::testing
