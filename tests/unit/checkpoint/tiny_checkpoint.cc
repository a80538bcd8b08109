#include "tests/unit/checkpoint/tiny_checkpoint.h"

#include <stdlib.h>

#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "gtest/gtest.h"
#include "kernels/tensor.h"

namespace expertd::testing {

TempDir::TempDir() {
  std::string pattern = ::testing::TempDir() + "expertd-XXXXXX";
  path_ = mkdtemp(pattern.data());
}
TempDir::~TempDir() { std::filesystem::remove_all(path_); }

void TinyCheckpoint::Add(const std::string& name, std::vector<std::int64_t> shape, const std::string& dtype) {
  std::int64_t count = 1;
  for (const std::int64_t size : shape) count *= size;
  std::mt19937 random(static_cast<std::uint32_t>(std::hash<std::string>()(name)));
  TinyTensor& tensor = tensors[name];
  tensor = {.dtype = dtype, .shape = std::move(shape)};
  for (std::int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
    const std::uint16_t bf16 = F32ToBf16(value);
    const std::uint16_t f16 = static_cast<std::uint16_t>(0x3000 + random() % 0x800 + (random() % 2) * 0x8000);
    const std::uint8_t code = static_cast<std::uint8_t>(random() % 0x60 + (random() % 2) * 0x80);
    if (dtype == "F32") tensor.bytes.append(reinterpret_cast<const char*>(&value), 4);
    if (dtype == "BF16") tensor.bytes.append(reinterpret_cast<const char*>(&bf16), 2);
    if (dtype == "F16") tensor.bytes.append(reinterpret_cast<const char*>(&f16), 2);
    if (dtype == "F8_E4M3" || dtype == "U8") tensor.bytes.append(reinterpret_cast<const char*>(&code), 1);
    if (dtype == "I64") tensor.bytes.append(8, '\0');
  }
}

void TinyCheckpoint::AddExpert(const std::string& at, std::int64_t hidden, std::int64_t width, const std::string& dtype,
                               const std::vector<std::string>& names) {
  for (std::size_t i = 0; i < 3; ++i) {
    const std::int64_t out = i == 2 ? hidden : width, in = i == 2 ? width : hidden;
    const std::string name = absl::StrCat(at, ".", names[i], ".weight");
    Add(name, {out, in}, dtype);
    if (dtype == "F8_E4M3") Add(name + "_scale_inv", {(out + 127) / 128, (in + 127) / 128}, "F32");
  }
}

void TinyCheckpoint::Write(const std::string& dir, int shards, std::size_t pad) const {
  WriteFile(dir + "/config.json", config);
  if (shards == 1) return WriteFile(dir + "/model.safetensors", SafetensorsBytes(tensors, pad));
  std::vector<std::map<std::string, TinyTensor>> parts(static_cast<std::size_t>(shards));
  std::vector<std::string> map;
  std::size_t next = 0;
  for (const auto& [name, tensor] : tensors) {
    const std::size_t shard = next++ % parts.size();
    parts[shard][name] = tensor;
    map.push_back(absl::StrFormat("\"%s\": \"model-%05d-of-%05d.safetensors\"", name, shard + 1, shards));
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    WriteFile(absl::StrFormat("%s/model-%05d-of-%05d.safetensors", dir, i + 1, shards),
              SafetensorsBytes(parts[i], pad));
  }
  WriteFile(dir + "/model.safetensors.index.json",
            absl::StrCat("{\"metadata\": {}, \"weight_map\": {", absl::StrJoin(map, ", "), "}}"));
}

std::string RawSafetensors(const std::string& header, const std::string& data) {
  const std::uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string SafetensorsBytes(const std::map<std::string, TinyTensor>& tensors, std::size_t pad) {
  std::vector<std::string> entries;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    entries.push_back(absl::StrFormat("\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%d,%d]}", name,
                                      tensor.dtype, absl::StrJoin(tensor.shape, ","), data.size(),
                                      data.size() + tensor.bytes.size()));
    data += tensor.bytes;
  }
  return RawSafetensors(absl::StrCat("{", absl::StrJoin(entries, ","), "}", std::string(pad, ' ')), data);
}

void WriteFile(const std::string& path, const std::string& bytes) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << bytes;
  ASSERT_TRUE(file.good()) << path;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

}  // namespace expertd::testing
