// What fuzzing has found so far, and every malformed request.
#include <string>

#include "tests/fuzz/corpus.h"
#include "tests/unit/codec/malformed_requests.h"

namespace expertd {
namespace {

using testing::Replay;

TEST(ForwardRequestCorpusTest, Replays) { testing::ReplayCorpus(); }

TEST(ForwardRequestCorpusTest, ReplaysTheMalformedRequests) {
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
