// What fuzzing has found so far, and every malformed request, through the fuzz target: an ordinary test for every
// compiler.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "gtest/gtest.h"
#include "tests/unit/codec/malformed_requests.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace expertd {
namespace {

void Replay(const std::string& input) {
  EXPECT_EQ(LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(input.data()), input.size()), 0);
}

TEST(FuzzCorpusTest, Replays) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(EXPERTD_FUZZ_CORPUS)) {
    SCOPED_TRACE(entry.path());
    std::ifstream file(entry.path(), std::ios::binary);
    Replay(std::string(std::istreambuf_iterator<char>(file), {}));
    ++files;
  }
  EXPECT_GT(files, 0) << EXPERTD_FUZZ_CORPUS;
}

TEST(FuzzCorpusTest, ReplaysTheMalformedRequests) {
  const MalformedTarget target = {
      .model = "m", .layer = 0, .hidden_size = 2, .num_experts = 4, .max_rows = 64, .max_k = 4};
  for (const char cut : {'\0', '\1', '\6'}) {
    const std::string prefix(1, cut);
    Replay(prefix);
    Replay(prefix + ValidServerRoutedRequest(target));
    Replay(prefix + ValidPreRoutedRequest(target));
    for (const MalformedRequest& request : MalformedRequests(target)) {
      SCOPED_TRACE(request.name);
      Replay(prefix + request.bytes);
      Replay(prefix + AsStreamRequest(request.bytes));
    }
  }
}

}  // namespace
}  // namespace expertd
