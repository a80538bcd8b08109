#include "kernels/reference/io_file.h"

#include <filesystem>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checkpoint/safetensors_writer.h"

namespace expertd::reference {
namespace {

struct Tensor {
  TensorInfo info;
  std::vector<std::byte> bytes;
};

template <class T>
Tensor Make(const char* name, DType dtype, std::vector<std::int64_t> shape, const std::vector<T>& values) {
  const auto* const data = reinterpret_cast<const std::byte*>(values.data());
  return {{name, dtype, std::move(shape)}, {data, data + values.size() * sizeof(T)}};
}

// Two rows of three columns, one layer.
std::vector<Tensor> Valid() {
  return {
      Make<std::uint16_t>("hidden_states", DType::kBF16, {2, 3}, {0x3f80, 0x4000, 0, 0, 0xbf80, 0}),
      Make<float>("output.7", DType::kF32, {2, 3}, {1, 2, 3, 4, 5, 6}),
      Make<std::int64_t>("topk_ids.7", DType::kI64, {2, 2}, {3, 0, 1, 2}),
      Make<float>("topk_weights.7", DType::kF32, {2, 2}, {0.25f, 0.75f, 0.5f, 0.5f}),
      Make<float>("something.else", DType::kF32, {1}, {1}),
  };
}

absl::StatusOr<IoFile> WriteAndRead(const std::vector<Tensor>& tensors) {
  const std::string path = ::testing::TempDir() + "io_file_test.safetensors";
  std::vector<TensorInfo> infos;
  for (const Tensor& t : tensors) infos.push_back(t.info);
  const auto writer = SafetensorsWriter::Create(path, infos);
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (std::size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE((*writer)->Write(i, 0, tensors[i].bytes).ok());
  EXPECT_TRUE((*writer)->Finish().ok());
  auto file = ReadIoFile(path);
  std::filesystem::remove(path);
  return file;
}

TEST(IoFileTest, ReadsRowsOutputsAndRouting) {
  const auto io = WriteAndRead(Valid());
  ASSERT_TRUE(io.ok()) << io.status();
  EXPECT_EQ(io->n, 2);
  EXPECT_EQ(io->d, 3);
  EXPECT_EQ(io->dtype, DType::kBF16);
  EXPECT_THAT(io->rows, ::testing::ElementsAre(1, 2, 0, 0, -1, 0));
  ASSERT_EQ(io->layers.size(), 1u);
  EXPECT_THAT(io->layers.at(7).output, ::testing::ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(io->layers.at(7).topk_ids, ::testing::ElementsAre(3, 0, 1, 2));
  EXPECT_THAT(io->layers.at(7).topk_weights, ::testing::ElementsAre(0.25, 0.75, 0.5, 0.5));
}

TEST(IoFileTest, RoutingIsOptional) {
  std::vector<Tensor> tensors = Valid();
  tensors.erase(tensors.begin() + 2, tensors.begin() + 4);
  const auto io = WriteAndRead(tensors);
  ASSERT_TRUE(io.ok()) << io.status();
  EXPECT_TRUE(io->layers.at(7).topk_ids.empty());
}

TEST(IoFileTest, RefusesWhatDoesNotFitByName) {
  const auto message = [](std::size_t index, Tensor tensor) {
    std::vector<Tensor> tensors = Valid();
    tensors[index] = std::move(tensor);
    return std::string(WriteAndRead(tensors).status().message());
  };
  EXPECT_EQ(message(0, Make<float>("hidden", DType::kF32, {1}, {1})),
            "io_file_test.safetensors: tensor hidden_states: is missing");
  EXPECT_EQ(message(0, Make<float>("hidden_states", DType::kF32, {0, 3}, {})),
            "io_file_test.safetensors: tensor hidden_states: shape [0, 3] is not [N, D]");
  EXPECT_EQ(message(0, Make<std::int32_t>("hidden_states", DType::kI32, {2, 3}, {1, 2, 3, 4, 5, 6})),
            "io_file_test.safetensors: tensor hidden_states: is neither bf16 nor f32");
  EXPECT_EQ(message(1, Make<float>("output.7", DType::kF32, {3, 2}, {1, 2, 3, 4, 5, 6})),
            "io_file_test.safetensors: tensor output.7: shape [3, 2] is not [2, 3]");
  EXPECT_EQ(message(2, Make<float>("topk_ids.7", DType::kF32, {2, 1}, {1, 2})),
            "io_file_test.safetensors: tensor topk_ids.7: is neither i32 nor i64");
  EXPECT_EQ(message(3, Make<float>("topk_weights.7", DType::kF32, {2, 1}, {1, 2})),
            "io_file_test.safetensors: tensor topk_weights.7: shape [2, 1] is not [2, 2]");
  EXPECT_EQ(ReadIoFile("/nonexistent/io.safetensors").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace expertd::reference
