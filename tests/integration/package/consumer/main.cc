// Runs the rows of a golden checkpoint through a layer of it, with the C++ engine, and compares with its outputs.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/checkpoint/checkpoint.h"
#include "kernels/checkpoint/safetensors.h"
#include "kernels/engine_factory.h"

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", std::string(result.status().message()).c_str());
    std::exit(1);
  }
  return *std::move(result);
}

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::string dir = argv[1];
  const auto checkpoint = Must(expertd::Checkpoint::Open(dir));
  const auto source = Must(checkpoint->OpenLayer(checkpoint->layers().front().layer));
  const auto engine = Must(expertd::MakeEngine("cpu", {.threads = 1}));
  const auto layer = Must(engine->LoadLayer(*source));

  const auto file = Must(expertd::SafetensorsFile::Open(dir + "/io.safetensors"));
  const expertd::TensorEntry& rows = *file->Find("hidden_states");
  const expertd::TensorEntry& golden = *file->Find("output.0");
  std::vector<std::uint16_t> in(rows.bytes / 2);
  std::vector<float> want(golden.bytes / 4), got(want.size());
  std::memcpy(in.data(), rows.data, rows.bytes);
  std::memcpy(want.data(), golden.data, golden.bytes);
  const expertd::Segment segment = {.rows = rows.shape[0],
                                    .input = in.data(),
                                    .output = got.data(),
                                    .input_dtype = expertd::DType::kBF16,
                                    .output_dtype = expertd::DType::kF32};
  const absl::Status status = engine->Run(*layer, {&segment, 1}, nullptr);
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  const double error = std::sqrt(difference / norm);
  std::printf("%s on %s: relative error %.1e\n", layer->spec().Name().c_str(), engine->info().device.c_str(), error);
  return status.ok() && error < 5e-3 ? 0 : 1;
}
