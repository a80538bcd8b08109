#include "server/admin/model_root.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "tests/support/certificates.h"

namespace expertd::testing {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::Not;

// root/{model,link,hub}, and secrets beside it.
class ModelRootTest : public ::testing::Test {
 protected:
  ModelRootTest() {
    for (const char* folder : {"root/model", "root/hub/blobs", "root/hub/snapshot", "secrets/model"}) {
      fs::create_directories(folder_.Path(folder));
    }
    folder_.Write("root/model/config.json", "{}");
    folder_.Write("root/hub/blobs/1", "{}");
    folder_.Write("secrets/model/config.json", "{}");
    fs::create_symlink("../blobs/1", folder_.Path("root/hub/snapshot/config.json"));
  }
  absl::StatusOr<std::string> Resolve(const std::string& path) const {
    return ResolveBelow(folder_.Path("root"), path);
  }

  const TestFolder folder_;
};

TEST_F(ModelRootTest, FoldersAndLinksInsideAreFine) {
  EXPECT_EQ(*Resolve("model"), fs::canonical(folder_.Path("root/model")).string());
  EXPECT_EQ(*Resolve("./model/"), fs::canonical(folder_.Path("root/model")).string());
  EXPECT_TRUE(Resolve("hub/snapshot").ok()) << Resolve("hub/snapshot").status();
  EXPECT_TRUE(Resolve(".").ok()) << "the root may be a checkpoint itself";
  fs::create_symlink("model", folder_.Path("root/link"));
  EXPECT_EQ(*Resolve("link"), fs::canonical(folder_.Path("root/model")).string());
}

TEST_F(ModelRootTest, NothingOutsideIsReached) {
  fs::create_symlink("../secrets/model", folder_.Path("root/relative"));
  fs::create_symlink(folder_.Path("secrets"), folder_.Path("root/absolute"));
  fs::create_symlink("../../secrets/model/config.json", folder_.Path("root/model/model.safetensors"));
  for (const std::string& path :
       {std::string(), std::string("/"), folder_.Path("root/model"), std::string(".."), std::string("../secrets/model"),
        std::string("model/../../secrets/model"), std::string("model/.."), std::string("relative"),
        std::string("absolute/model"), std::string("absolute"), std::string("model"), std::string("model\0x", 7)}) {
    const absl::Status status = Resolve(path).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << path << ": " << status;
    EXPECT_THAT(std::string(status.message()), Not(HasSubstr(folder_.Path("secrets"))));
  }
}

TEST_F(ModelRootTest, NoFolderIsNotFound) {
  for (const char* path : {"none", "model/config.json", "model/none"}) {
    EXPECT_TRUE(absl::IsNotFound(Resolve(path).status())) << path;
  }
  fs::create_symlink("nowhere", folder_.Path("root/dangling"));
  EXPECT_TRUE(absl::IsNotFound(Resolve("dangling").status()));
}

}  // namespace
}  // namespace expertd::testing
