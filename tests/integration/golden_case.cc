#include "tests/integration/golden_case.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace expertd::testing {
namespace {

constexpr char kRoot[] = EXPERTD_TEST_DATA "/golden";

const TensorEntry& Tensor(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.Find(name);
  if (entry != nullptr) return *entry;
  std::fprintf(stderr, "%s: tensor %s: missing\n", file.path().c_str(), name.c_str());
  std::abort();
}

std::vector<double> ElementsOf(const TensorEntry& entry) {
  return ValuesOf(entry.data, entry.dtype, static_cast<std::size_t>(entry.bytes * 8 / BitsOf(entry.dtype)));
}

GoldenLayer ReadLayer(const SafetensorsFile& file, const std::string& suffix) {
  GoldenLayer layer;
  if (!absl::SimpleAtoi(suffix, &layer.layer)) std::abort();
  layer.output = ElementsOf(Tensor(file, "output." + suffix));
  if (file.Find("topk_ids." + suffix) == nullptr) return layer;
  const TensorEntry& ids = Tensor(file, "topk_ids." + suffix);
  layer.k = ids.shape.at(1);
  for (const double id : ElementsOf(ids)) layer.topk_ids.push_back(static_cast<std::int64_t>(id));
  layer.topk_weights = ElementsOf(Tensor(file, "topk_weights." + suffix));
  return layer;
}

template <class T>
T Load(const void* data, std::size_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(data) + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kRoot)) {
    if (std::filesystem::exists(entry.path() / "io.safetensors")) names.push_back(entry.path().filename());
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::string GoldenDir(const std::string& name) { return absl::StrCat(kRoot, "/", name); }

GoldenCase::GoldenCase(const std::string& name) : name(name) {
  const auto file = SafetensorsFile::Open(GoldenDir(name) + "/io.safetensors");
  if (!file.ok()) {
    std::fprintf(stderr, "%s\n", file.status().ToString().c_str());
    std::abort();
  }
  const TensorEntry& hidden = Tensor(**file, "hidden_states");
  rows = hidden.shape.at(0);
  hidden_size = hidden.shape.at(1);
  hidden_states.assign(reinterpret_cast<const char*>(hidden.data), static_cast<std::size_t>(hidden.bytes));
  for (const auto& [tensor, entry] : (*file)->tensors()) {
    absl::string_view suffix = tensor;
    if (absl::ConsumePrefix(&suffix, "output.")) layers.push_back(ReadLayer(**file, std::string(suffix)));
  }
}

client::Request GoldenCase::RequestFor(std::uint32_t layer) const {
  client::Request request;
  request.head.set_model(name);
  request.head.set_layer(layer);
  request.head.set_rows(rows);
  request.head.set_dtype(v1::DTYPE_BF16);
  request.head.set_output_dtype(v1::DTYPE_F32);
  request.hidden_states = grpc::Slice(hidden_states);
  return request;
}

std::vector<double> ValuesOf(const void* data, DType dtype, std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) {
    switch (dtype) {
      case DType::kBF16:
        values[i] = static_cast<double>(Bf16ToF32(Load<std::uint16_t>(data, i)));
        break;
      case DType::kF32:
        values[i] = static_cast<double>(Load<float>(data, i));
        break;
      case DType::kI32:
        values[i] = Load<std::int32_t>(data, i);
        break;
      case DType::kI64:
        values[i] = static_cast<double>(Load<std::int64_t>(data, i));
        break;
      default:
        std::abort();
    }
  }
  return values;
}

std::vector<double> Values(const client::Answer& answer) {
  const DType dtype = answer.result().dtype() == v1::DTYPE_F32 ? DType::kF32 : DType::kBF16;
  const std::string bytes = answer.OutputString();
  return ValuesOf(bytes.data(), dtype, bytes.size() * 8 / static_cast<std::size_t>(BitsOf(dtype)));
}

}  // namespace expertd::testing
