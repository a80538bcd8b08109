#include "server/kserve/shared_memory.h"

#include <gmock/gmock.h>

#include "tests/unit/kserve/shm_object.h"

namespace expertd::kserve {
namespace {

using ::testing::HasSubstr;
using testing::ShmObject;
using ::testing::SizeIs;

constexpr char kMe[] = "me";

std::string ReadAll(const SharedTensor& tensor, std::size_t size, absl::Status* status) {
  std::string bytes(size, '\0');
  *status = tensor.Read(absl::MakeSpan(bytes));
  return bytes;
}

absl::Span<const std::byte> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(SharedMemoryTest, ATensorIsReadAndWrittenAtItsPlace) {
  ShmObject object(100);
  object.Put(30, "hello");
  SharedMemory memory;
  ASSERT_TRUE(memory.Register(kMe, {"region", object.key(), 20, 80}).ok());
  const absl::StatusOr<SharedTensor> tensor = memory.Find(kMe, "region", 10, 5);
  ASSERT_TRUE(tensor.ok()) << tensor.status();
  absl::Status status;
  EXPECT_EQ(ReadAll(*tensor, 5, &status), "hello");
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(tensor->Write(AsBytes("HELLO")).ok());
  EXPECT_EQ(object.Get(29, 7), std::string("\0HELLO\0", 7));
}

TEST(SharedMemoryTest, ATruncatedObjectIsAnErrorAndNoSignal) {
  ShmObject object(8192);
  SharedMemory memory;
  ASSERT_TRUE(memory.Register(kMe, {"region", object.key(), 0, 8192}).ok());
  const absl::StatusOr<SharedTensor> tensor = memory.Find(kMe, "region", 4096, 4096);
  ASSERT_TRUE(tensor.ok());
  object.Resize(4100);
  absl::Status status;
  ReadAll(*tensor, 4096, &status);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("'region' was truncated: 4 of 4096 bytes"));
  EXPECT_EQ(tensor->Write(AsBytes(std::string(4096, 'x'))).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(object.Get(0, 8192), SizeIs(4100)) << "writing made it longer again";
}

TEST(SharedMemoryTest, WhatDoesNotFitIsRefused) {
  ShmObject object(100);
  SharedMemory memory;
  const std::uint64_t most = ~std::uint64_t{0};
  const struct {
    RegionInfo region;
    const char* reason;
  } refused[] = {
      {{"", object.key(), 0, 10}, "name: empty"},
      {{"r", object.key(), 0, 0}, "byte_size is 0"},
      {{"r", object.key(), 0, 101}, "has 100 bytes, not offset 0 + byte_size 101"},
      {{"r", object.key(), 100, 1}, "has 100 bytes"},
      {{"r", object.key(), most, 2}, "has 100 bytes"},
      {{"r", object.key(), 1, most}, "has 100 bytes"},
      {{"r", "", 0, 10}, "cannot be opened"},
      {{"r", "/expertd-test-no-such-object", 0, 10}, "cannot be opened: No such file"},
      {{"r", "/../../etc/passwd", 0, 10}, "cannot be opened"},
  };
  for (const auto& [region, reason] : refused) {
    const absl::Status status = memory.Register(kMe, region);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << reason;
    EXPECT_THAT(status.message(), HasSubstr(reason));
  }
  ASSERT_TRUE(memory.Register(kMe, {"r", object.key(), 0, 100}).ok());
  EXPECT_EQ(memory.Register(kMe, {"r", object.key(), 0, 100}).code(), absl::StatusCode::kAlreadyExists);
  EXPECT_TRUE(memory.Find(kMe, "r", 100, 0).ok());
  EXPECT_THAT(memory.Find(kMe, "r", 99, 2).status().message(), HasSubstr("'r' has 100 bytes"));
  EXPECT_FALSE(memory.Find(kMe, "r", most, 2).ok());
  EXPECT_FALSE(memory.Find(kMe, "r", 2, most).ok());
  EXPECT_THAT(memory.Find(kMe, "s", 0, 1).status().message(), HasSubstr("'s' is not registered"));
}

TEST(SharedMemoryTest, RegionsAreTheirOwnersOnly) {
  ShmObject object(100);
  SharedMemory memory;
  for (const char* name : {"a", "b"}) ASSERT_TRUE(memory.Register(kMe, {name, object.key(), 0, 100}).ok());
  ASSERT_TRUE(memory.Register("you", {"a", object.key(), 0, 50}).ok());
  EXPECT_FALSE(memory.Find("you", "b", 0, 1).ok());
  EXPECT_THAT(*memory.List(kMe, ""), SizeIs(2));
  EXPECT_EQ(memory.List("you", "a")->at(0).byte_size, 50u);
  EXPECT_EQ(memory.List("you", "b").status().code(), absl::StatusCode::kNotFound);

  const absl::StatusOr<SharedTensor> in_use = memory.Find(kMe, "a", 0, 3);
  memory.Unregister(kMe, "no such region");
  memory.Unregister(kMe, "a");
  EXPECT_THAT(*memory.List(kMe, ""), SizeIs(1));
  memory.Unregister(kMe, "");
  EXPECT_THAT(*memory.List(kMe, ""), SizeIs(0));
  EXPECT_THAT(*memory.List("you", ""), SizeIs(1));
  EXPECT_TRUE(in_use->Write(AsBytes("abc")).ok()) << "a request in progress keeps its region";
}

TEST(SharedMemoryTest, RegionsAreBounded) {
  ShmObject object(100);
  SharedMemory memory;
  for (std::size_t i = 0; i < SharedMemory::kMaxRegions; ++i) {
    ASSERT_TRUE(memory.Register(kMe, {absl::StrCat(i), object.key(), 0, 1}).ok()) << i;
  }
  EXPECT_EQ(memory.Register(kMe, {"more", object.key(), 0, 1}).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace expertd::kserve
