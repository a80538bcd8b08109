// What fuzzing has found so far, and the golden checkpoints, whole and cut short.
#include <cstdint>
#include <string>

#include "tests/fuzz/corpus.h"

namespace expertd {
namespace {

using testing::ReadBytes;
using testing::Replay;

TEST(CheckpointCorpusTest, Replays) { testing::ReplayCorpus(); }

TEST(CheckpointCorpusTest, ReplaysTheGoldenCheckpoints) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(EXPERTD_TEST_DATA "/golden")) {
    if (!std::filesystem::exists(entry.path() / "model.safetensors")) continue;  // no folder, or several shards
    SCOPED_TRACE(entry.path());
    const std::string config = ReadBytes(entry.path() / "config.json"),
                      tensors = ReadBytes(entry.path() / "model.safetensors");
    const auto config_bytes = static_cast<std::uint32_t>(config.size());
    const std::string input =
        std::string(reinterpret_cast<const char*>(&config_bytes), sizeof(config_bytes)) + config + tensors;
    Replay(input);
    for (const std::size_t size : {input.size() - 1, input.size() / 2, config.size() + 12, std::size_t{4}}) {
      Replay(input.substr(0, size));
    }
    ++cases;
  }
  EXPECT_GE(cases, 15);
}

}  // namespace
}  // namespace expertd
