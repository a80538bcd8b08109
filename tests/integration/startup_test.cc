// How `expertd serve` starts, and how it says that it cannot.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/client.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/server_process.h"

namespace expertd::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::StartsWith;

Outcome Serve(const std::vector<std::string>& flags) { return RunToEnd({EXPERTD_BIN_DIR "/expertd", "serve"}, flags); }

// Exactly one line, which names the program and says `reason`.
void ExpectOneLine(const std::string& err, const std::string& reason) {
  EXPECT_THAT(err, StartsWith("expertd: "));
  EXPECT_THAT(err, HasSubstr(reason));
  EXPECT_EQ(err.find('\n'), err.size() - 1) << err;
}

class TempDir {
 public:
  TempDir() : path_(fs::temp_directory_path() / absl::StrCat("expertd_startup_test.", getpid())) {
    fs::remove_all(path_);
    fs::create_directories(path_);
  }
  ~TempDir() { fs::remove_all(path_); }
  const fs::path& path() const { return path_; }

 private:
  const fs::path path_;
};

TEST(StartupTest, WrongFlagsExitWith2) {
  const std::string olmoe = GoldenDir("olmoe");
  const std::vector<std::vector<std::string>> wrong = {
      {},
      {"--checkpoint", olmoe, "--no-such-flag"},
      {"--checkpoint", olmoe, "--max-batch-rows", "0"},
      {"--checkpoint", olmoe, "--layers", "3-1"},
      {"--checkpoint", olmoe, "--device", "abacus"},
      {"--checkpoint", olmoe, "--listen", "0.0.0.0:0"},  // plaintext for everybody without --insecure
  };
  for (const auto& flags : wrong) {
    const Outcome outcome = Serve(flags);
    EXPECT_EQ(outcome.code, 2) << ::testing::PrintToString(flags) << outcome.err;
    EXPECT_FALSE(outcome.err.empty()) << ::testing::PrintToString(flags);
  }
}

TEST(StartupTest, ADeviceThatIsNotThereExitsWith5) {
  const Outcome outcome = Serve({"--checkpoint", GoldenDir("olmoe"), "--device", "cuda:99", "--listen", "127.0.0.1:0",
                                 "--metrics-address", "127.0.0.1:0", "--log-level", "error"});
  EXPECT_EQ(outcome.code, 5) << outcome.err;
  ExpectOneLine(outcome.err, "cuda");
}

TEST(StartupTest, BrokenCheckpointsExitWith3AndOneLine) {
  struct Case {
    const char* name;
    void (*damage)(const fs::path& dir);
    const char* reason;
  };
  const Case cases[] = {
      {"truncated", [](const fs::path& dir) { fs::resize_file(dir / "model.safetensors", 5000); }, "model.safetensors"},
      {"weights_missing", [](const fs::path& dir) { fs::remove(dir / "model.safetensors"); }, "model.safetensors"},
      {"config_missing", [](const fs::path& dir) { fs::remove(dir / "config.json"); }, "config.json"},
      {"config_no_json", [](const fs::path& dir) { std::ofstream(dir / "config.json") << "{"; }, "config.json"},
      {"family_unknown",
       [](const fs::path& dir) { std::ofstream(dir / "config.json") << R"({"model_type": "abacus"})"; }, "abacus"},
      {"folder_missing", [](const fs::path& dir) { fs::remove_all(dir); }, "folder_missing"},
  };
  const TempDir temp;
  for (const Case& broken : cases) {
    const fs::path dir = temp.path() / broken.name;
    fs::copy(GoldenDir("olmoe"), dir);
    broken.damage(dir);
    const Outcome outcome = Serve({"--checkpoint", dir.string(), "--listen", "127.0.0.1:0", "--metrics-address",
                                   "127.0.0.1:0", "--log-level", "error"});
    EXPECT_EQ(outcome.code, 3) << broken.name << outcome.err;
    ExpectOneLine(outcome.err, broken.reason);
    EXPECT_EQ(outcome.out.find("ready"), std::string::npos) << broken.name;
  }
}

TEST(StartupTest, LayersThatAreNotThereExitWith3) {
  const Outcome outcome = Serve({"--checkpoint", GoldenDir("olmoe"), "--layers", "7", "--listen", "127.0.0.1:0",
                                 "--metrics-address", "127.0.0.1:0", "--log-level", "error"});
  EXPECT_EQ(outcome.code, 3) << outcome.err;
  ExpectOneLine(outcome.err, "7");
}

TEST(StartupTest, APortThatIsTakenExitsWith4) {
  auto first = ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe")});
  ASSERT_TRUE(first.ok()) << first.status();
  for (const auto& [listen, metrics, taken] :
       {std::tuple{(*first)->address(), std::string("127.0.0.1:0"), (*first)->address()},
        std::tuple{std::string("127.0.0.1:0"), (*first)->metrics_address(), (*first)->metrics_address()}}) {
    const Outcome second = Serve(
        {"--checkpoint", GoldenDir("olmoe"), "--listen", listen, "--metrics-address", metrics, "--log-level", "error"});
    EXPECT_EQ(second.code, 4) << second.err;
    EXPECT_THAT(second.err, HasSubstr(taken));
  }
  const auto client = client::Client::Connect({.endpoint = (*first)->address()});
  EXPECT_TRUE(client.ok()) << "the first server is still there";
}

TEST(StartupTest, AKilledServerComesBackOnItsPortWithTheSameBits) {
  const GoldenCase golden("olmoe");
  std::string address = "127.0.0.1:0", before, fingerprint;
  for (int life = 0; life < 3; ++life) {
    auto server = ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--listen", address});
    ASSERT_TRUE(server.ok()) << server.status();
    address = (*server)->address();
    const auto client = client::Client::Connect({.endpoint = address});
    ASSERT_TRUE(client.ok()) << client.status();
    const auto answer = (*client)->Forward(golden.RequestFor(golden.layers[0].layer), std::chrono::seconds(10));
    ASSERT_TRUE(answer.ok()) << answer.status();
    if (life > 0) {
      EXPECT_EQ(answer->OutputString(), before);
      EXPECT_EQ(answer->result().fingerprint(), fingerprint);
    }
    before = answer->OutputString();
    fingerprint = answer->result().fingerprint();
    (*server)->process().Signal(SIGKILL);
    EXPECT_EQ((*server)->process().Wait(kPatience), 128 + SIGKILL);
  }
}

std::vector<std::string> ServedLayers(const std::vector<std::string>& flags) {
  auto server = ServerProcess::Start(EXPERTD_BIN_DIR, flags);
  EXPECT_TRUE(server.ok()) << server.status();
  if (!server.ok()) return {};
  const auto client = client::Client::Connect({.endpoint = (*server)->address()});
  EXPECT_TRUE(client.ok()) << client.status();
  std::vector<std::string> names;
  const auto listed = (*client)->ListLayers();
  EXPECT_TRUE(listed.ok()) << listed.status();
  for (const v1::Layer& layer : listed->layers()) {
    EXPECT_EQ(layer.state(), v1::Layer::STATE_SERVING);
    names.push_back(absl::StrCat(layer.model(), "/", layer.layer()));
  }
  return names;
}

TEST(StartupTest, SeveralCheckpointsLayersAndNames) {
  EXPECT_THAT(ServedLayers({"--checkpoint", "first=" + GoldenDir("olmoe"), "--checkpoint",
                            "second=" + GoldenDir("olmoe"), "--checkpoint", GoldenDir("mixtral")}),
              ::testing::UnorderedElementsAre("first/0", "second/0", "mixtral/0"));
  const TempDir temp;
  const std::string deep = (temp.path() / "deep").string();
  const auto synth = Process::Start({EXPERTD_BIN_DIR "/expertd", "synth", "--like", "olmoe", "--layers", "5",
                                     "--experts", "8", "--hidden", "64", "--intermediate", "32", "--out", deep});
  ASSERT_TRUE(synth.ok());
  ASSERT_EQ((*synth)->Wait(kPatience), 0) << (*synth)->err();
  EXPECT_THAT(ServedLayers({"--checkpoint", deep}),
              ::testing::UnorderedElementsAre("deep/0", "deep/1", "deep/2", "deep/3", "deep/4"));
  EXPECT_THAT(ServedLayers({"--checkpoint", deep, "--layers", "0-1,3"}),
              ::testing::UnorderedElementsAre("deep/0", "deep/1", "deep/3"));
}

}  // namespace
}  // namespace expertd::testing
