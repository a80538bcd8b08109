// Sends random rows to the first layer that a server serves: once as a unary call, then pipelined on a stream.
//
//   forward_example [ENDPOINT]        (default 127.0.0.1:8470)
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include "client/cpp/client.h"
#include "kernels/tensor.h"

namespace {

using expertd::client::Answer;
using expertd::client::Client;
using expertd::client::Request;
namespace v1 = expertd::v1;

Request RandomRows(const v1::Layer& layer, std::int64_t rows, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<std::uint16_t> values(static_cast<std::size_t>(rows * layer.hidden_size()));
  for (std::uint16_t& value : values) value = expertd::F32ToBf16(normal(random));

  Request request;
  request.head.set_model(layer.model());
  request.head.set_layer(layer.layer());
  request.head.set_rows(rows);
  request.head.set_dtype(v1::DTYPE_BF16);
  request.hidden_states = grpc::Slice(values.data(), values.size() * sizeof(values[0]));
  return request;
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  auto client = Client::Connect({.endpoint = argc > 1 ? argv[1] : "127.0.0.1:8470"});
  if (!client.ok()) return Fail(client.status());
  const auto layers = (*client)->ListLayers();
  if (!layers.ok()) return Fail(layers.status());
  if (layers->layers().empty()) return Fail(absl::NotFoundError("the server has no layers"));
  const v1::Layer& layer = layers->layers(0);

  const auto answer = (*client)->Forward(RandomRows(layer, 4, /*seed=*/1), std::chrono::seconds(10));
  if (!answer.ok()) return Fail(answer.status());
  std::printf("%s/%u: 4 rows -> %zu bytes in %.0f us on the server\n", layer.model().c_str(), layer.layer(),
              answer->output_bytes, static_cast<double>(answer->result().stages().total()));

  std::atomic<int> answered{0};
  const auto stream = (*client)->OpenStream();
  for (unsigned i = 0; i < 8; ++i) {
    const auto id = stream->Forward(RandomRows(layer, 1 + i, i), [&answered](absl::StatusOr<Answer> done) {
      if (done.ok()) ++answered;
    });
    if (!id.ok()) return Fail(id.status());
  }
  if (const absl::Status status = stream->Close(); !status.ok()) return Fail(status);
  std::printf("pipelined: %d of 8 answered\n", answered.load());
  return answered == 8 ? 0 : 1;
}
