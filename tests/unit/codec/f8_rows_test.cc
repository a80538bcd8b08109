// e4m3 rows with scales: against the definition of the codes, and against plain Protobuf on the other side.
#include "server/codec/f8_rows.h"

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "expertd/v1/expertd.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/codec/codec_testing.h"

namespace expertd {
namespace {

using ::testing::HasSubstr;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class T>
std::string BytesOfValues(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

struct Encoded {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
};

Encoded Encode(const std::vector<std::uint16_t>& rows_data, std::int64_t rows, std::int64_t block) {
  const auto hidden_size = static_cast<std::int64_t>(rows_data.size()) / rows;
  std::vector<std::uint16_t> in_place = rows_data;
  Encoded out;
  out.scales.resize(static_cast<std::size_t>(rows * ScalesPerRow(hidden_size, block)));
  auto* data = reinterpret_cast<std::byte*>(in_place.data());
  EncodeF8Rows(data, rows, hidden_size, block, reinterpret_cast<std::byte*>(out.scales.data()));
  out.codes.assign(reinterpret_cast<const std::uint8_t*>(data),
                   reinterpret_cast<const std::uint8_t*>(data) + rows_data.size());
  return out;
}

// The nearest code, the even one of two, found by looking at all.
std::uint8_t NearestCode(float value) {
  std::uint8_t best = 0;
  for (int code = 0; code < 0x7f; ++code) {
    const float distance = std::fabs(F8E4M3ToF32(static_cast<std::uint8_t>(code)) - std::fabs(value));
    const float best_distance = std::fabs(F8E4M3ToF32(best) - std::fabs(value));
    if (distance < best_distance || (distance == best_distance && code % 2 == 0))
      best = static_cast<std::uint8_t>(code);
  }
  return static_cast<std::uint8_t>(best | (std::signbit(value) ? 0x80 : 0));
}

TEST(F8RowsTest, EveryCodeTimesAScaleIsRoundedOnceToBf16) {
  std::string codes(256, '\0');
  for (int i = 0; i < 256; ++i) codes[static_cast<std::size_t>(i)] = static_cast<char>(i);
  for (const float scale : {1.0f, -1.0f, 0.0f, 0x1p-20f, 3.14159f, 1e-40f, 1e37f}) {
    const std::string message = codes + BytesOfValues<float>({scale});
    std::vector<std::uint16_t> out(256);
    const absl::Status status = DecodeF8Rows(CutMessage(message, {3, 130, 257}).slices(), {0, 256}, {256, 4}, 1, 256, 0,
                                             reinterpret_cast<std::byte*>(out.data()));
    ASSERT_TRUE(status.ok()) << status;
    for (int code = 0; code < 256; ++code) {
      const float want = F8E4M3ToF32(static_cast<std::uint8_t>(code)) * scale;
      const std::uint16_t got = out[static_cast<std::size_t>(code)];
      if (std::isnan(want)) {
        EXPECT_TRUE(std::isnan(Bf16ToF32(got))) << code << " * " << scale;
      } else {
        EXPECT_EQ(got, F32ToBf16(want)) << code << " * " << scale;
      }
    }
  }
}

// 448 in every row makes the scale 1, so that the codes are those of the values themselves.
TEST(F8RowsTest, EveryBf16BecomesTheNearestCode) {
  std::vector<std::uint16_t> values;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    if (std::fabs(Bf16ToF32(static_cast<std::uint16_t>(bits))) <= 448.0f) values.push_back(bits);
  }
  const Encoded encoded = Encode(values, 1, 0);
  ASSERT_EQ(encoded.scales, std::vector<float>{1.0f});
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(encoded.codes[i], NearestCode(Bf16ToF32(values[i]))) << Bf16ToF32(values[i]);
  }
}

TEST(F8RowsTest, TheErrorIsAsStatedForWholeRowsAndBlocks) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  constexpr std::int64_t kRows = 5;
  for (const std::int64_t hidden_size : {1, 2, 127, 128, 129, 300, 2048}) {
    for (const std::int64_t block : {0, 128}) {
      std::vector<std::uint16_t> rows(static_cast<std::size_t>(kRows * hidden_size));
      for (std::size_t i = 0; i < rows.size(); ++i) {
        // Blocks of very different size, and far from f32's ends.
        rows[i] = F32ToBf16(std::ldexp(normal(random), static_cast<int>(i / 64 % 40) - 20));
      }
      const Encoded encoded = Encode(rows, kRows, block);
      const std::int64_t per_row = ScalesPerRow(hidden_size, block);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const auto row = static_cast<std::int64_t>(i) / hidden_size,
                   column = static_cast<std::int64_t>(i) % hidden_size;
        const float scale = encoded.scales[static_cast<std::size_t>(row * per_row + (block ? column / block : 0))];
        const float value = Bf16ToF32(rows[i]);
        const float error = std::fabs(F8E4M3ToF32(encoded.codes[i]) * scale - value);
        ASSERT_LE(error, std::max(std::fabs(value) / 16, scale / 1024) * 1.00001f) << hidden_size << " " << block;
      }
    }
  }
}

TEST(F8RowsTest, OddValues) {
  const auto bf16 = [](std::vector<float> values) {
    std::vector<std::uint16_t> out;
    for (const float value : values) out.push_back(F32ToBf16(value));
    return out;
  };
  // Zero and NaN rows have a scale that divides; infinity neither makes the scale nor survives.
  EXPECT_EQ(Encode(bf16({0, -0.0f, 0}), 1, 0).scales, std::vector<float>{1.0f});
  EXPECT_EQ(Encode(bf16({0, -0.0f, 0}), 1, 0).codes, (std::vector<std::uint8_t>{0, 0x80, 0}));
  EXPECT_EQ(Encode(bf16({kNaN, -kNaN}), 1, 0).codes[0] & 0x7f, 0x7f);
  EXPECT_EQ(Encode(bf16({kNaN, -kNaN}), 1, 0).scales, std::vector<float>{1.0f});
  const Encoded infinite = Encode(bf16({kInf, 448, -kInf, 224}), 1, 0);
  EXPECT_EQ(infinite.scales, std::vector<float>{1.0f});
  EXPECT_EQ(infinite.codes, (std::vector<std::uint8_t>{0x7f, 0x7e, 0xff, 0x76}));
  const Encoded tiny = Encode({1, 0x8001, 0}, 1, 0);  // the least there is
  EXPECT_EQ(tiny.codes, (std::vector<std::uint8_t>{0, 0x80, 0}));
  const Encoded huge = Encode({0x7f7f, 0xff7f}, 1, 0);
  EXPECT_EQ(huge.codes, (std::vector<std::uint8_t>{0x7e, 0xfe}));
  EXPECT_TRUE(Encode({}, 1, 128).codes.empty());
}

TEST(F8RowsTest, ScalesThatAreNotFiniteAreRefusedByName) {
  const std::vector<float> good = {1, 1, 1, 1};
  for (const float bad : {kNaN, kInf, -kInf}) {
    std::vector<float> scales = good;
    scales[3] = bad;
    const std::string message = std::string(2 * 200, '\x38') + BytesOfValues(scales);
    std::vector<std::uint16_t> out(400);
    const absl::Status status = DecodeF8Rows(CutMessage(message).slices(), {0, 400}, {400, 16}, 2, 200, 128,
                                             reinterpret_cast<std::byte*>(out.data()));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr("scales[1,1]="));
    EXPECT_THAT(std::string(status.message()), HasSubstr("is not finite"));
  }
}

// What an answer is, written by us and read by Protobuf.
TEST(F8RowsTest, ProtobufReadsTheAnswer) {
  constexpr std::int64_t kRows = 3, kHidden = 200;
  for (const std::int64_t block : {0, 128}) {
    std::vector<std::uint16_t> rows(kRows * kHidden);
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = F32ToBf16(static_cast<float>(i) - 300);
    const Encoded want = Encode(rows, kRows, block);
    std::string buffer = BytesOfValues(rows);
    buffer.resize(static_cast<std::size_t>(F8AnswerRoom(kRows, kHidden, block)));
    const std::int64_t bytes = EncodeF8Answer(reinterpret_cast<std::byte*>(buffer.data()), kRows, kHidden, block);
    const ResponseHead head = {.request_id = 7,
                               .rows = kRows,
                               .dtype = DType::kF8E4M3,
                               .fingerprint = "abc",
                               .scales_bytes = static_cast<std::int64_t>(want.scales.size() * sizeof(float))};
    v1::ForwardResponse response;
    ASSERT_TRUE(response.ParseFromString(EncodeResponsePrefix(head, kRows * kHidden) +
                                         buffer.substr(0, static_cast<std::size_t>(bytes))));
    EXPECT_EQ(response.request_id(), 7u);
    EXPECT_EQ(response.result().dtype(), v1::DTYPE_F8_E4M3);
    EXPECT_EQ(response.result().output(), BytesOfValues(want.codes));
    EXPECT_EQ(response.result().scales(), BytesOfValues(want.scales));
    EXPECT_EQ(response.result().fingerprint(), "abc");
  }
}

TEST(F8RowsTest, RequestsAreHeldAgainstTheirShapes) {
  const LayerSpec spec = {.model = "m", .hidden_size = 200, .num_experts = 4};
  v1::ForwardRequest good;
  good.set_model("m");
  good.set_rows(2);
  good.set_dtype(v1::DTYPE_F8_E4M3);
  good.set_hidden_states(std::string(400, 'c'));
  good.set_scales(std::string(8, '\0'));
  v1::ForwardRequest blocks = good;
  blocks.set_scale_block(128);
  blocks.set_scales(std::string(16, '\0'));
  const auto with = [](v1::ForwardRequest request, auto change) {
    change(request);
    return request;
  };
  const std::tuple<v1::ForwardRequest, const char*> cases[] = {
      {good, ""},
      {blocks, ""},
      {with(good, [](auto& r) { r.set_scale_block(128); }), "scales: 8 bytes do not hold rows=2 x scales=2 x f32 (16"},
      {with(blocks, [](auto& r) { r.clear_scale_block(); }), "scales: 16 bytes do not hold rows=2 x scales=1 x f32 (8"},
      {with(good, [](auto& r) { r.clear_scales(); }), "scales: 0 bytes do not hold"},
      {with(good, [](auto& r) { r.set_hidden_states("c"); }), "hidden_states: 1 bytes do not hold"},
      {with(good, [](auto& r) { r.set_output_dtype(v1::DTYPE_F32); }), ""},
      {with(good, [](auto& r) { r.set_output_scale_block(128); }), ""},
      {with(good, [](auto& r) { r.set_dtype(v1::DTYPE_BF16); }), "scales: 8 is given, but dtype is bf16"},
      {with(blocks, [](auto& r) { r.set_dtype(v1::DTYPE_F32); }), "scale_block: 128 is given, but dtype is f32"},
      {with(good,
            [](auto& r) {
              r.set_output_dtype(v1::DTYPE_BF16);
              r.set_output_scale_block(128);
            }),
       "output_scale_block: 128 is given, but output_dtype is bf16"},
      {with(good, [](auto& r) { r.mutable_region(); }), "dtype: rows in a region are bf16 or f32"},
  };
  for (const auto& [request, message] : cases) {
    SCOPED_TRACE(request.ShortDebugString());
    const std::string bytes = request.SerializeAsString();
    const absl::StatusOr<ForwardHead> head = ScanForwardRequest(CutMessage(bytes).slices());
    ASSERT_TRUE(head.ok()) << head.status();
    const absl::Status status = CheckAgainstLayer(*head, spec, {.max_rows = 8, .max_k = 2});
    EXPECT_EQ(status.ok(), *message == '\0') << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
  }
  v1::ForwardRequest odd = good;
  odd.set_scale_block(64);
  EXPECT_THAT(std::string(ScanForwardRequest(CutMessage(odd.SerializeAsString()).slices()).status().message()),
              HasSubstr("scale_block: 64 is neither 128 nor 0"));
}

}  // namespace
}  // namespace expertd
