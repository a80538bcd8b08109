#include "client/cpp/program/rows_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

namespace expertd::client {
namespace {

using ::testing::HasSubstr;

template <class T>
std::string BytesOf(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

struct Tensor {
  TensorInfo info;
  std::string bytes;
};

class RowsFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "rows_file_test." + std::to_string(getpid()) + ".safetensors";
  }
  void TearDown() override { std::filesystem::remove(path_); }

  void Write(const std::vector<Tensor>& tensors) {
    std::vector<TensorInfo> infos;
    for (const Tensor& tensor : tensors) infos.push_back(tensor.info);
    auto writer = SafetensorsWriter::Create(path_, infos);
    ASSERT_TRUE(writer.ok()) << writer.status();
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::string& bytes = tensors[i].bytes;
      ASSERT_TRUE((*writer)->Write(i, 0, {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()}).ok());
    }
    ASSERT_TRUE((*writer)->Finish().ok());
  }

  Tensor Hidden() { return {{"hidden_states", DType::kF32, {3, 2}}, BytesOf<float>({1, 2, 3, 4, 5, 6})}; }
  Tensor Ids(std::vector<std::int64_t> ids = {0, 1, 2, -1, 4, 5}) {
    return {{"topk_ids", DType::kI64, {3, 2}}, BytesOf(ids)};
  }
  Tensor Weights() { return {{"topk_weights", DType::kF32, {3, 2}}, BytesOf<float>({.1f, .2f, .3f, .4f, .5f, .6f})}; }

  void ExpectRefused(const std::vector<Tensor>& tensors, const std::string& reason) {
    Write(tensors);
    const auto file = RowsFile::Open(path_);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(reason));
  }

  std::string path_;
};

TEST_F(RowsFileTest, RangesKeepTheFileMapped) {
  Write({Hidden(), Ids(), Weights()});
  Request request;
  {
    const auto file = RowsFile::Open(path_);
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(file->rows(), 3);
    EXPECT_EQ(file->hidden_size(), 2);
    EXPECT_EQ(file->k(), 2);
    EXPECT_EQ(file->Rows(3, 0).hidden_states.size(), 0u);
    request = file->Rows(1, 2);
  }
  EXPECT_EQ(request.head.rows(), 2);
  EXPECT_EQ(request.head.dtype(), v1::DTYPE_F32);
  EXPECT_EQ(std::string(request.hidden_states.begin(), request.hidden_states.end()), BytesOf<float>({3, 4, 5, 6}));
  EXPECT_EQ(request.head.routing().topk_ids(), BytesOf<std::int32_t>({2, -1, 4, 5}));
  EXPECT_EQ(request.head.routing().topk_weights(), BytesOf<float>({.3f, .4f, .5f, .6f}));
}

TEST_F(RowsFileTest, WithoutRoutingTheServerRoutes) {
  Write({Hidden()});
  const auto file = RowsFile::Open(path_);
  ASSERT_TRUE(file.ok());
  EXPECT_EQ(file->k(), 0);
  EXPECT_FALSE(file->Rows(0, 1).head.has_routing());
}

TEST_F(RowsFileTest, RefusalsNameTheTensorAndTheReason) {
  ExpectRefused({Ids()}, "hidden_states: missing");
  ExpectRefused({{{"hidden_states", DType::kI32, {1, 1}}, "1234"}}, "hidden_states: i32 is neither bf16 nor f32");
  ExpectRefused({{{"hidden_states", DType::kF32, {1}}, "1234"}}, "hidden_states: shape [1] is not [rows, hidden]");
  ExpectRefused({Hidden(), Ids()}, "topk_weights: missing beside topk_ids");
  ExpectRefused({Hidden(), Weights()}, "topk_ids: missing beside topk_weights");
  ExpectRefused({Hidden(), Ids({0, 1, 2, 3, 4, 1ll << 31}), Weights()}, "topk_ids: an id does not fit 32 bits");
  Tensor ids = Ids(), weights = Weights();
  ids.info.shape = {2, 3};
  ExpectRefused({Hidden(), ids, weights}, "topk_ids: shape [2, 3] is not [3, k]");
  weights.info.shape = {6, 1};
  ExpectRefused({Hidden(), Ids(), weights}, "topk_weights: shape [6, 1] is not that of topk_ids, [3, 2]");
  EXPECT_EQ(RowsFile::Open(path_ + ".none").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(RowsFileTest, AnswersOfPiecesBecomeOneFile) {
  AnswersFile answers(path_);
  for (const float value : {1.0f, 2.0f}) {
    Answer answer;
    v1::ForwardResult& result = *answer.response.mutable_result();
    result.set_dtype(v1::DTYPE_F32);
    result.mutable_routing()->set_k(1);
    result.mutable_routing()->set_topk_ids(BytesOf<std::int32_t>({7}));
    result.mutable_routing()->set_topk_weights(BytesOf<float>({value}));
    answer.output = {grpc::Slice(BytesOf<float>({value})), grpc::Slice(BytesOf<float>({value + 10}))};
    answer.output_bytes = 8;
    answers.Add(answer);
  }
  EXPECT_EQ(answers.Write(3, 2).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(answers.Write(2, 2).ok());
  const auto file = SafetensorsFile::Open(path_);
  ASSERT_TRUE(file.ok());
  const auto bytes = [&](const char* name) {
    const TensorEntry* entry = (*file)->Find(name);
    return entry == nullptr
               ? "missing"
               : std::string(reinterpret_cast<const char*>(entry->data), static_cast<std::size_t>(entry->bytes));
  };
  EXPECT_EQ(bytes("output"), BytesOf<float>({1, 11, 2, 12}));
  EXPECT_EQ(bytes("topk_ids"), BytesOf<std::int32_t>({7, 7}));
  EXPECT_EQ(bytes("topk_weights"), BytesOf<float>({1, 2}));
}

}  // namespace
}  // namespace expertd::client
