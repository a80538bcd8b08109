// What a serving engine does for each token: the same rows through every layer of a model in order, for several
// sequences at once, each on a stream of its own, over all replicas that are ready, with retries.
//
//   decode_step_example [ENDPOINT]        (default 127.0.0.1:8470; dns:///name:port for replicas)
//
// With EXPERTD_TLS_CA the connection is encrypted, with EXPERTD_TOKEN_FILE calls carry a token.
#include <cstdio>
#include <cstdlib>
#include <future>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/cpp/client.h"

namespace {

using expertd::client::Answer;
using expertd::client::Client;
using expertd::client::ClientOptions;
using expertd::client::Request;
using expertd::client::Stream;
namespace v1 = expertd::v1;

constexpr std::int64_t kRows = 2;  // tokens of a sequence that are decoded together
constexpr int kSequences = 3;

ClientOptions Options(int argc, char** argv) {
  ClientOptions options{.connections = 2, .health_aware = true, .retry = {.attempts = 4}};
  if (argc > 1) options.endpoint = argv[1];
  if (const char* ca = std::getenv("EXPERTD_TLS_CA")) options.tls = expertd::client::TlsOptions{.ca_file = ca};
  if (const char* token = std::getenv("EXPERTD_TOKEN_FILE")) options.token = expertd::client::TokenFromFile(token);
  return options;
}

// The output of a layer, without a copy: the slices of an answer become the rows of the next request.
absl::StatusOr<Answer> RunLayer(Stream& stream, const v1::Layer& layer, grpc::Slice rows) {
  Request request;
  request.head.set_model(layer.model());
  request.head.set_layer(layer.layer());
  request.head.set_expected_fingerprint(layer.fingerprint());  // other weights: an error, not other tokens
  request.head.set_rows(kRows);
  request.head.set_dtype(v1::DTYPE_F32);
  request.head.set_timeout_us(10'000'000);
  request.hidden_states = std::move(rows);
  std::promise<absl::StatusOr<Answer>> answer;
  const auto id =
      stream.Forward(std::move(request), [&](absl::StatusOr<Answer> done) { answer.set_value(std::move(done)); });
  if (!id.ok()) return id.status();
  return answer.get_future().get();
}

absl::Status DecodeStep(const Client& client, const std::vector<v1::Layer>& layers) {
  const auto stream = client.OpenStream();
  const std::vector<float> values(static_cast<std::size_t>(kRows * layers[0].hidden_size()), 0.25f);
  grpc::Slice rows(values.data(), values.size() * sizeof(float));
  for (const v1::Layer& layer : layers) {
    const auto answer = RunLayer(*stream, layer, rows);
    if (!answer.ok()) return answer.status();
    // A large answer comes in several slices; then one copy makes them one.
    rows = answer->output.size() == 1 ? answer->output[0] : grpc::Slice(answer->OutputString());
  }
  return stream->Close();
}

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  const auto client = Client::Connect(Options(argc, argv));
  if (!client.ok()) return Fail(client.status());
  const auto listed = (*client)->ListLayers();
  if (!listed.ok()) return Fail(listed.status());
  std::vector<v1::Layer> layers;  // of the first model, which the server lists in order
  for (const v1::Layer& layer : listed->layers()) {
    if (layer.model() == listed->layers(0).model()) layers.push_back(layer);
  }
  if (layers.empty()) return Fail(absl::NotFoundError("the server has no layers"));

  std::vector<absl::Status> results(kSequences);
  std::vector<std::thread> sequences;
  for (absl::Status& result : results) {
    sequences.emplace_back([&] { result = DecodeStep(**client, layers); });
  }
  for (std::thread& sequence : sequences) sequence.join();
  for (const absl::Status& result : results) {
    if (!result.ok()) return Fail(result);
  }
  std::printf("%d sequences of %d rows went through %zu layers of %s\n", kSequences, static_cast<int>(kRows),
              layers.size(), layers[0].model().c_str());
}
