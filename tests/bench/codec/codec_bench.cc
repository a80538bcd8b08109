// What reading a request and writing a response cost, beside Protobuf's generated classes. Args: rows of 2048 bf16.
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "expertd/v1/expertd.pb.h"
#include "server/codec/forward_codec.h"

namespace expertd {
namespace {

constexpr std::int64_t kHidden = 2048;
constexpr std::size_t kSliceBytes = 16384;  // about what a TCP read gives

LayerSpec Spec() {
  LayerSpec spec;
  spec.model = "qwen3-30b";
  spec.hidden_size = kHidden;
  spec.num_experts = 128;
  return spec;
}

// `k` experts a row, 0 for server-routed.
std::string Request(std::int64_t rows, std::int64_t k) {
  v1::ForwardRequest request;
  request.set_model("qwen3-30b");
  request.set_layer(12);
  request.set_request_id(123456789);
  request.set_rows(rows);
  request.set_dtype(v1::DTYPE_BF16);
  request.set_timeout_us(100000);
  request.set_traceparent("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
  if (k > 0) {
    request.mutable_routing()->set_k(k);
    request.mutable_routing()->set_topk_ids(std::string(rows * k * 4, '\0'));
    request.mutable_routing()->set_topk_weights(std::string(rows * k * 4, '\0'));
  }
  request.set_hidden_states(std::string(rows * kHidden * 2, '\x3f'));
  return request.SerializeAsString();
}

std::vector<absl::string_view> Cut(absl::string_view bytes) {
  std::vector<absl::string_view> slices;
  for (std::size_t at = 0; at < bytes.size(); at += kSliceBytes) slices.push_back(bytes.substr(at, kSliceBytes));
  return slices;
}

void BM_Scan(benchmark::State& state) {
  const std::string bytes = Request(state.range(0), state.range(1));
  const std::vector<absl::string_view> slices = Cut(bytes);
  for (auto _ : state) benchmark::DoNotOptimize(ScanForwardRequest(slices).ok());
}
BENCHMARK(BM_Scan)->ArgNames({"rows", "k"})->Args({16, 0})->Args({16, 8})->Args({512, 0})->Args({4096, 8});

void BM_ScanAndGather(benchmark::State& state) {
  const std::string bytes = Request(state.range(0), 0);
  const std::vector<absl::string_view> slices = Cut(bytes);
  std::vector<std::byte> out(bytes.size());
  for (auto _ : state) {
    Gather(slices, ScanForwardRequest(slices)->hidden_states, out.data());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
}
BENCHMARK(BM_ScanAndGather)->ArgName("rows")->Arg(4)->Arg(16)->Arg(64)->Arg(512);

void BM_ProtobufParse(benchmark::State& state) {
  const std::string bytes = Request(state.range(0), 0);
  v1::ForwardRequest request;
  for (auto _ : state) benchmark::DoNotOptimize(request.ParseFromString(bytes));
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
}
BENCHMARK(BM_ProtobufParse)->ArgName("rows")->Arg(4)->Arg(16)->Arg(64)->Arg(512);

// A message of nothing but two-byte fields, each of them refused: the most work that a caller can ask for per byte.
void BM_ScanHostile(benchmark::State& state) {
  std::string bytes;
  for (std::int64_t i = 0; i < state.range(0); ++i) bytes += "\x50\x63";  // priority: 99
  const std::vector<absl::string_view> slices = Cut(bytes);
  for (auto _ : state) benchmark::DoNotOptimize(ScanForwardRequest(slices).ok());
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(bytes.size()));
}
BENCHMARK(BM_ScanHostile)->ArgName("fields")->Arg(1 << 20);

void BM_CheckRouting(benchmark::State& state) {
  const std::int64_t rows = state.range(0), k = state.range(1);
  std::vector<std::int32_t> ids(rows * k);
  for (std::int64_t i = 0; i < rows * k; ++i) ids[i] = static_cast<std::int32_t>((i % k + i / k * 13) % 128);
  const std::vector<float> weights(rows * k, 0.125f);
  const LayerSpec spec = Spec();
  for (auto _ : state) benchmark::DoNotOptimize(CheckRouting(ids.data(), weights.data(), rows, k, spec).ok());
  state.SetItemsProcessed(state.iterations() * rows * k);
}
BENCHMARK(BM_CheckRouting)->ArgNames({"rows", "k"})->Args({1, 8})->Args({16, 8})->Args({4096, 8})->Args({512, 64});

void BM_HasNonFinite(benchmark::State& state) {
  const std::int64_t rows = state.range(0);
  const std::vector<std::uint16_t> data(rows * kHidden, 0x3f80);
  std::int64_t row = 0;
  for (auto _ : state) benchmark::DoNotOptimize(HasNonFinite(data.data(), DType::kBF16, rows, kHidden, &row));
  state.SetBytesProcessed(state.iterations() * rows * kHidden * 2);
}
BENCHMARK(BM_HasNonFinite)->ArgName("rows")->Arg(1)->Arg(16)->Arg(4096);

void BM_EncodePrefix(benchmark::State& state) {
  ResponseHead head;
  head.request_id = 123456789;
  head.rows = 16;
  head.decode = head.queue = head.total = 1e-5;
  head.stages = {1e-5, 1e-5, 1e-5, 1e-5, 1e-5};
  head.batch_rows = 256;
  head.batch_requests = 16;
  head.fingerprint = "0123456789abcdef0123456789abcdef";
  for (auto _ : state) benchmark::DoNotOptimize(EncodeResponsePrefix(head, head.rows * kHidden * 2).data());
}
BENCHMARK(BM_EncodePrefix);

}  // namespace
}  // namespace expertd
