// The reader against files written by hand, the writer against the reader.
#include "kernels/checkpoint/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checkpoint/safetensors_writer.h"
#include "tests/unit/checkpoint/tiny_checkpoint.h"

namespace expertd {
namespace {

using ::expertd::testing::RawSafetensors;
using ::expertd::testing::TempDir;
using ::expertd::testing::WriteFile;
using ::testing::HasSubstr;

std::string Entry(const std::string& name, const std::string& dtype, const std::string& shape, std::int64_t begin,
                  std::int64_t end) {
  return absl::StrCat("\"", name, "\":{\"dtype\":\"", dtype, "\",\"shape\":[", shape, "],\"data_offsets\":[", begin,
                      ",", end, "]}");
}

struct BadFile {
  const char* name;
  std::string bytes;
  const char* message;  // behind "bad.safetensors: "
};
void PrintTo(const BadFile& bad, std::ostream* out) { *out << bad.name; }

std::string Length(std::uint64_t length) { return {reinterpret_cast<const char*>(&length), 8}; }

const std::string kFour = "\1\2\3\4";
const std::vector<BadFile>& BadFiles() {
  static const auto* files = new std::vector<BadFile>{
      {"Empty", "", "0 bytes do not hold a header length (8 bytes)"},
      {"SevenBytes", "1234567", "7 bytes do not hold a header length (8 bytes)"},
      {"HeaderAbove100MB", Length(100'000'001) + "{}", "header of 100000001 bytes, at most 100000000 are allowed"},
      {"HeaderLengthAllOnes", Length(~0ull) + "{}", "header of 18446744073709551615 bytes, at most 100000000"},
      {"HeaderLongerThanFile", Length(3) + "{}", "header of 3 bytes, the file has 10 (truncated?)"},
      {"HeaderOfZeroBytes", Length(0), "header: does not begin with '{'"},
      {"HeaderIsArray", RawSafetensors("[]", ""), "header: does not begin with '{'"},
      {"HeaderBeginsWithSpace", RawSafetensors(" {}", ""), "header: does not begin with '{'"},
      {"HeaderCutShort", RawSafetensors("{\"a\":", ""), "header: not valid JSON at byte"},
      {"HeaderWithBytesBehind", RawSafetensors("{}x", ""), "header: not valid JSON at byte"},
      {"HeaderNotUtf8", RawSafetensors("{\"\xff\":1}", ""), "header: not valid JSON at byte"},
      {"HeaderTooDeep", RawSafetensors("{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}", ""),
       "header: nested deeper than 64"},
      {"NumberOutOfRange", RawSafetensors("{\"a\":1e999}", ""), "header: a number is out of range"},
      {"DuplicateTensor",
       RawSafetensors("{" + Entry("a", "U8", "4", 0, 4) + "," + Entry("a", "U8", "4", 0, 4) + "}", kFour),
       "header: duplicate key \"a\""},
      {"DuplicateTensorEscaped",
       RawSafetensors("{" + Entry("a", "U8", "4", 0, 4) + "," + Entry("\\u0061", "U8", "4", 0, 4) + "}", kFour),
       "header: duplicate key \"a\""},
      {"DuplicateField", RawSafetensors(R"({"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", kFour),
       "header: duplicate key \"dtype\""},
      {"DuplicateMetadata", RawSafetensors(R"({"__metadata__":{"k":"1","k":"2"}})", ""), "header: duplicate key \"k\""},
      {"MetadataIsNumber", RawSafetensors(R"({"__metadata__":3})", ""), "__metadata__: must be an object of strings"},
      {"MetadataOfNumbers", RawSafetensors(R"({"__metadata__":{"k":1}})", ""),
       "__metadata__: must be an object of strings"},
      {"EntryIsNumber", RawSafetensors(R"({"a":1})", ""), "tensor a: must be an object"},
      {"NoDtype", RawSafetensors(R"({"a":{"shape":[4],"data_offsets":[0,4]}})", kFour),
       "tensor a: dtype: must be a string"},
      {"UnknownDtype", RawSafetensors("{" + Entry("a", "Q4_0", "4", 0, 4) + "}", kFour),
       "tensor a: dtype: \"Q4_0\" is unknown"},
      {"NoShape", RawSafetensors(R"({"a":{"dtype":"U8","data_offsets":[0,4]}})", kFour),
       "tensor a: shape: must be an array"},
      {"NegativeSize", RawSafetensors("{" + Entry("a", "U8", "-4", 0, 4) + "}", kFour),
       "tensor a: shape: -4 is no size"},
      {"FractionalSize", RawSafetensors("{" + Entry("a", "U8", "4.0", 0, 4) + "}", kFour),
       "tensor a: shape: 4.0 is no size"},
      {"SizeAbove63Bits", RawSafetensors("{" + Entry("a", "U8", "9223372036854775808", 0, 4) + "}", kFour),
       "tensor a: shape: 9223372036854775808 is no size"},
      {"ProductOverflows", RawSafetensors("{" + Entry("a", "F32", "4294967296,4294967296", 0, 4) + "}", kFour),
       "tensor a: shape [4294967296, 4294967296] x f32 overflows"},
      {"BytesOverflow", RawSafetensors("{" + Entry("a", "F64", "2305843009213693952", 0, 4) + "}", kFour),
       "tensor a: shape [2305843009213693952] x f64 overflows"},
      {"NoOffsets", RawSafetensors(R"({"a":{"dtype":"U8","shape":[4]}})", kFour),
       "tensor a: data_offsets: must be two sizes"},
      {"OneOffset", RawSafetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[4]}})", kFour),
       "tensor a: data_offsets: must be two sizes"},
      {"NegativeOffset", RawSafetensors("{" + Entry("a", "U8", "4", -4, 0) + "}", kFour),
       "tensor a: data_offsets: must be two sizes"},
      {"OffsetsBackwards", RawSafetensors("{" + Entry("a", "U8", "4", 4, 0) + "}", kFour),
       "tensor a: data_offsets [4, 0] do not lie in the file's 4 bytes"},
      {"DataTruncated", RawSafetensors("{" + Entry("a", "U8", "8", 0, 8) + "}", kFour),
       "tensor a: data_offsets [0, 8] do not lie in the file's 4 bytes of data (truncated?)"},
      {"ShapeAndOffsetsDisagree", RawSafetensors("{" + Entry("a", "BF16", "4", 0, 4) + "}", kFour),
       "tensor a: shape [4] x bf16 wants 8 bytes, data_offsets give 4"},
      {"HalfAByte", RawSafetensors("{" + Entry("a", "F4", "7", 0, 4) + "}", kFour),
       "tensor a: shape [7] x f4_e2m1 is no whole number of bytes"},
      {"UnknownField", RawSafetensors(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4],"strides":[1]}})", kFour),
       "tensor a: unknown field \"strides\""},
      {"Overlap", RawSafetensors("{" + Entry("a", "U8", "3", 0, 3) + "," + Entry("b", "U8", "2", 2, 4) + "}", kFour),
       "tensor b: data_offsets begin at 2, overlapping: byte 3"},
      {"SameBytesTwice",
       RawSafetensors("{" + Entry("a", "U8", "4", 0, 4) + "," + Entry("b", "U8", "4", 0, 4) + "}", kFour),
       "tensor b: data_offsets begin at 0, overlapping: byte 4"},
      {"Gap", RawSafetensors("{" + Entry("a", "U8", "1", 0, 1) + "," + Entry("b", "U8", "2", 2, 4) + "}", kFour),
       "tensor b: data_offsets begin at 2, leaving a gap: byte 1"},
      {"GapAtStart", RawSafetensors("{" + Entry("a", "U8", "3", 1, 4) + "}", kFour),
       "tensor a: data_offsets begin at 1, leaving a gap: byte 0"},
      {"BytesBehindTheLast", RawSafetensors("{" + Entry("a", "U8", "3", 0, 3) + "}", kFour),
       "the tensors cover 3 of the file's 4 bytes"},
      {"DataWithoutTensors", RawSafetensors("{}", kFour), "the tensors cover 0 of the file's 4 bytes"},
      {"NameWithNewline", RawSafetensors("{" + Entry("a\\nb", "Q", "4", 0, 4) + "}", kFour),
       "tensor a\\nb: dtype: \"Q\""},
  };
  return *files;
}

class BadFileTest : public ::testing::TestWithParam<BadFile> {};

TEST_P(BadFileTest, IsRefusedOnOneLine) {
  const TempDir dir;
  const std::string path = dir.path() + "/bad.safetensors";
  WriteFile(path, GetParam().bytes);
  const auto file = SafetensorsFile::Open(path);
  EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << file.status();
  EXPECT_THAT(std::string(file.status().message()), HasSubstr(absl::StrCat("bad.safetensors: ", GetParam().message)));
  EXPECT_EQ(file.status().message().find('\n'), absl::string_view::npos);
}

INSTANTIATE_TEST_SUITE_P(Files, BadFileTest, ::testing::ValuesIn(BadFiles()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(SafetensorsFileTest, MissingFileIsNotFoundAndFolderIsNoFile) {
  const TempDir dir;
  EXPECT_EQ(SafetensorsFile::Open(dir.path() + "/none").status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(SafetensorsFile::Open(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(SafetensorsFileTest, ReadsEveryTypeAnyOrderScalarsAndEmptyTensors) {
  const TempDir dir;
  const std::string path = dir.path() + "/a.safetensors";
  const std::string header = "{\"__metadata__\":{\"format\":\"pt\"}," + Entry("late", "BF16", "2", 5, 9) + "," +
                             Entry("none", "F32", "0,7", 5, 5) + "," + Entry("first", "U8", "1,1", 0, 1) + "," +
                             Entry("scalar", "F32", "", 1, 5) + "," + Entry("b", "BOOL", "1", 9, 10) + "," +
                             Entry("f4", "F4", "4", 10, 12) + "," + Entry("e5", "F8_E5M2", "1", 12, 13) + "," +
                             Entry("i", "I64", "1", 13, 21) + "," + Entry("d", "F64", "1", 21, 29) + "," +
                             Entry("h", "F16", "1", 29, 31) + "," + Entry("j", "I16", "1", 31, 33) + "," +
                             Entry("k", "U32", "1", 33, 37) + "," + Entry("l", "I8", "1", 37, 38) + "}   ";
  WriteFile(path, RawSafetensors(header, "\x07" + std::string(37, '\1')));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->tensors().size(), 13u);
  EXPECT_EQ((*file)->name(), "a.safetensors");
  EXPECT_EQ((*file)->Find("nothing"), nullptr);
  const TensorEntry* first = (*file)->Find("first");
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->data[0], std::byte{7});
  EXPECT_THAT(first->shape, ::testing::ElementsAre(1, 1));
  EXPECT_EQ((*file)->Find("none")->bytes, 0);
  EXPECT_EQ((*file)->Find("scalar")->bytes, 4);
  EXPECT_EQ((*file)->Find("f4")->dtype, DType::kF4E2M1);
  EXPECT_EQ((*file)->Find("late")->bytes, 4);
  EXPECT_EQ((*file)->Find("e5")->dtype, DType::kF8E5M2);
}

TEST(SafetensorsFileTest, HeaderOfExactlyTheRestOfTheFile) {
  const TempDir dir;
  WriteFile(dir.path() + "/a", RawSafetensors("{}", ""));
  EXPECT_TRUE(SafetensorsFile::Open(dir.path() + "/a").ok());
}

TEST(SafetensorsFileTest, DroppedPagesReadTheSameAgain) {
  const TempDir dir;
  const std::string path = dir.path() + "/a.safetensors";
  std::string data(100'000, '\0');
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<char>(i * 7);
  WriteFile(path, RawSafetensors("{" + Entry("a", "U8", "100000", 0, 100'000) + "}", data));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok());
  const TensorEntry* entry = (*file)->Find("a");
  for (const auto& [first, bytes] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{0, 100'000}, {1, 4096}, {5, 0}}) {
    (*file)->DropPages(entry->data + first, bytes);
    EXPECT_EQ(std::memcmp(entry->data, data.data(), data.size()), 0);
  }
}

// Bytes of mapped files that this process holds in memory.
std::int64_t ResidentFileBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind("RssFile:", 0) == 0) return std::stoll(line.substr(8)) * 1024;
  }
  return -1;
}

TEST(SafetensorsFileTest, DroppedPagesLeaveMemory) {
  constexpr std::int64_t kSize = 32 << 20;
  const TempDir dir;
  const std::string path = dir.path() + "/a.safetensors";
  WriteFile(path,
            RawSafetensors("{" + Entry("a", "U8", std::to_string(kSize), 0, kSize) + "}", std::string(kSize, 'x')));
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok());
  const TensorEntry* entry = (*file)->Find("a");
  std::int64_t sum = 0;
  for (std::int64_t i = 0; i < kSize; i += 4096) sum += static_cast<int>(entry->data[i]);
  EXPECT_EQ(sum, kSize / 4096 * 'x');
  const std::int64_t before = ResidentFileBytes();
  (*file)->DropPages(entry->data, kSize);
  EXPECT_GT(before - ResidentFileBytes(), kSize - (1 << 20));
}

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

TEST(SafetensorsWriterTest, RoundTripWithWritesInAnyOrderFromThreads) {
  const TempDir dir;
  const std::string path = dir.path() + "/out.safetensors";
  auto writer = SafetensorsWriter::Create(
      path, {{"codes \"quoted\"", DType::kU8, {3}}, {"wide", DType::kI64, {2, 2}}, {"none", DType::kBF16, {0}}},
      {{"who", "test"}});
  ASSERT_TRUE(writer.ok()) << writer.status();
  const std::string wide(32, 'w');
  std::thread other([&] { EXPECT_TRUE((*writer)->Write(1, 16, Bytes(wide.substr(16))).ok()); });
  EXPECT_TRUE((*writer)->Write(0, 0, Bytes("abc")).ok());
  EXPECT_TRUE((*writer)->Write(1, 0, Bytes(wide.substr(0, 16))).ok());
  other.join();
  EXPECT_FALSE(std::filesystem::exists(path)) << "the name appears with Finish()";
  ASSERT_TRUE((*writer)->Finish().ok());
  const auto file = SafetensorsFile::Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorEntry* entry = (*file)->Find("wide");
  ASSERT_NE(entry, nullptr);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(entry->data) % 8, 0u);
  EXPECT_EQ(std::memcmp(entry->data, wide.data(), 32), 0);
  EXPECT_EQ(std::memcmp((*file)->Find("codes \"quoted\"")->data, "abc", 3), 0);
  EXPECT_NE((*file)->Find("none"), nullptr);
}

TEST(SafetensorsWriterTest, RefusesWhatCannotBeRead) {
  const TempDir dir;
  const std::string path = dir.path() + "/out.safetensors";
  const auto code = [&](std::vector<TensorInfo> tensors) {
    return SafetensorsWriter::Create(path, std::move(tensors)).status().code();
  };
  EXPECT_EQ(code({{"a", DType::kU8, {1}}, {"a", DType::kU8, {1}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"__metadata__", DType::kU8, {1}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code({{"a", DType::kU8, {-1}}}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(SafetensorsWriter::Create(dir.path() + "/none/out", {}).status().code(), absl::StatusCode::kUnavailable);
}

TEST(SafetensorsWriterTest, UnfinishedFilesLeaveNothing) {
  const TempDir dir;
  const std::string path = dir.path() + "/out.safetensors";
  {
    auto writer = SafetensorsWriter::Create(path, {{"a", DType::kU8, {4}}});
    ASSERT_TRUE(writer.ok());
    EXPECT_EQ((*writer)->Write(0, 2, Bytes("abc")).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ((*writer)->Write(1, 0, Bytes("abc")).code(), absl::StatusCode::kOutOfRange);
    EXPECT_TRUE((*writer)->Write(0, 0, Bytes("abc")).ok());
    EXPECT_EQ((*writer)->Finish().code(), absl::StatusCode::kFailedPrecondition);
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace expertd
