// ForwardResponse, ForwardResult, StageMicros, Routing and Error; the numbers are expertd.proto's.
#include <cstring>
#include <string>

#include "server/codec/f8_rows.h"
#include "server/codec/forward_codec.h"
#include "server/codec/utf8.h"
#include "server/codec/wire_writer.h"

namespace expertd {
namespace {

// All of a message but the `to_follow` bytes at its end: counted, then written into a string that never grows.
template <class Body>
std::string Encode(std::uint64_t to_follow, const Body& body) {
  WireWriter counter(nullptr);
  body(counter);
  std::string out;
  out.reserve(counter.size() - to_follow);
  WireWriter writer(&out);
  body(writer);
  return out;
}

template <class T>
absl::string_view BytesOfArray(const T* data, std::int64_t count) {
  return {reinterpret_cast<const char*>(data), count * sizeof(T)};
}

std::uint64_t WireDType(DType dtype) { return dtype == DType::kF8E4M3 ? 3 : dtype == DType::kF32 ? 2 : 1; }

constexpr std::uint32_t kScalesField = 21;

// The scales' field as a whole, which follows the output.
std::uint64_t ScalesFieldBytes(std::int64_t scales_bytes) {
  WireWriter counter(nullptr);
  counter.FollowedBy(kScalesField, static_cast<std::uint64_t>(scales_bytes));
  return counter.size();
}

void WriteStages(WireWriter& out, const ResponseHead& head) {
  const double seconds[] = {head.decode,      head.queue,          head.stages.stage_in,  head.stages.route,
                            head.stages.gemm, head.stages.combine, head.stages.stage_out, head.total};
  std::uint32_t field = 1;
  for (double stage : seconds) out.Float(field++, static_cast<float>(stage * 1e6));
}

void WriteRouting(WireWriter& out, const ResponseHead& head) {
  out.Number(1, head.k);
  out.Bytes(2, BytesOfArray(head.topk_ids, head.rows * head.k));
  out.Bytes(3, BytesOfArray(head.topk_weights, head.rows * head.k));
}

void WriteResult(WireWriter& out, const ResponseHead& head, std::uint64_t output_bytes) {
  out.Number(1, head.rows);
  out.Number(2, WireDType(head.dtype));
  out.Message(3, [&](WireWriter& stages) { WriteStages(stages, head); });
  out.Number(4, head.batch_rows);
  out.Number(5, head.batch_requests);
  out.Bytes(6, head.fingerprint);
  if (head.k > 0) out.Message(7, [&](WireWriter& routing) { WriteRouting(routing, head); });
  out.FollowedBy(20, output_bytes);
  out.Later(ScalesFieldBytes(head.scales_bytes));
}

}  // namespace

std::string EncodeResponsePrefix(const ResponseHead& head, std::uint64_t output_bytes) {
  return Encode(output_bytes + ScalesFieldBytes(head.scales_bytes), [&](WireWriter& out) {
    out.Number(1, head.request_id);
    out.Message(2, [&](WireWriter& result) { WriteResult(result, head, output_bytes); });
  });
}

std::int64_t F8AnswerRoom(std::int64_t rows, std::int64_t hidden_size, std::int64_t block) {
  const std::int64_t scales_bytes = BytesOf(DType::kF32, rows * ScalesPerRow(hidden_size, block));
  return BytesOf(DType::kBF16, rows * hidden_size) + static_cast<std::int64_t>(ScalesFieldBytes(scales_bytes));
}

std::int64_t EncodeF8Answer(std::byte* rows_data, std::int64_t rows, std::int64_t hidden_size, std::int64_t block) {
  const std::int64_t codes_bytes = rows * hidden_size;
  const std::int64_t scales_bytes = BytesOf(DType::kF32, rows * ScalesPerRow(hidden_size, block));
  // The scales cannot lie behind the codes before all rows were read, which lie there still.
  std::byte* scales = rows_data + BytesOf(DType::kBF16, codes_bytes);
  EncodeF8Rows(rows_data, rows, hidden_size, block, scales);
  std::string header;
  WireWriter(&header).FollowedBy(kScalesField, static_cast<std::uint64_t>(scales_bytes));
  std::byte* end = rows_data + codes_bytes;
  std::memmove(end + header.size(), scales, static_cast<std::size_t>(scales_bytes));
  std::memcpy(end, header.data(), header.size());
  return codes_bytes + static_cast<std::int64_t>(header.size()) + scales_bytes;
}

std::string EncodeErrorResponse(std::uint64_t request_id, const absl::Status& status, std::uint64_t retry_after_us) {
  // A message that is not UTF-8 would make the whole response undecodable for its reader.
  const std::string message = ToValidUtf8(status.message());
  return Encode(0, [&](WireWriter& out) {
    out.Number(1, request_id);
    out.Message(3, [&](WireWriter& error) {
      error.Number(1, static_cast<std::uint64_t>(status.code()));
      error.Bytes(2, message);
      error.Number(3, retry_after_us);
    });
  });
}

}  // namespace expertd
