#include "kernels/checkpoint/tensor_table.h"

#include <unistd.h>

#include <fstream>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kernels/checkpoint/strict_json.h"

namespace expertd {
namespace {

using nlohmann::json;

constexpr char kSingle[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";

absl::Status IndexError(const std::string& reason) {
  return absl::InvalidArgumentError(absl::StrCat(kIndex, ": ", reason));
}

std::string Escaped(const std::string& name) { return absl::Utf8SafeCEscape(name); }

// weight_map as it stands: tensor -> shard.
absl::StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return IndexError("cannot be opened");
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  absl::StatusOr<json> index = ParseStrictJson(text);
  if (!index.ok()) return IndexError(std::string(index.status().message()));
  if (!index->is_object() || !index->contains("weight_map") || !(*index)["weight_map"].is_object()) {
    return IndexError("weight_map: missing or not an object");
  }
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : (*index)["weight_map"].items()) {
    if (!shard.is_string()) return IndexError(absl::StrCat("tensor ", Escaped(name), ": its shard is not a string"));
    const auto& file_name = shard.get_ref<const std::string&>();
    // A name, not a path: an index must not reach files outside its folder.
    if (!absl::EndsWith(file_name, ".safetensors") || file_name.find('/') != std::string::npos ||
        file_name.find('\0') != std::string::npos || file_name[0] == '.') {
      return IndexError(absl::StrCat("tensor ", Escaped(name), ": shard \"", Escaped(file_name),
                                     "\" is not the name of a .safetensors file in this folder"));
    }
    shards.emplace(name, file_name);
  }
  return shards;
}

absl::StatusOr<TensorTable> OpenSharded(const std::string& dir) {
  auto shards = ReadIndex(absl::StrCat(dir, "/", kIndex));
  if (!shards.ok()) return shards.status();
  std::map<std::string, std::shared_ptr<const SafetensorsFile>> files;
  for (const auto& [tensor, shard] : *shards) {
    auto& file = files[shard];
    if (file != nullptr) continue;
    auto opened = SafetensorsFile::Open(absl::StrCat(dir, "/", shard));
    if (absl::IsNotFound(opened.status())) {
      return absl::InvalidArgumentError(
          absl::StrCat(shard, ": missing, but ", kIndex, " places tensor ", Escaped(tensor), " in it"));
    }
    if (!opened.ok()) return opened.status();
    file = *std::move(opened);
  }
  TensorTable table = {.listing = kIndex};
  for (const auto& [tensor, shard] : *shards) {
    const auto& file = files[shard];
    const TensorEntry* entry = file->Find(tensor);
    if (entry == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(shard, ": tensor ", Escaped(tensor), ": missing, but ", kIndex, " places it here"));
    }
    table.tensors.emplace(tensor, PlacedTensor{file, entry});
  }
  for (const auto& [shard, file] : files) {
    for (const auto& [tensor, entry] : file->tensors()) {
      const auto named = shards->find(tensor);
      if (named == shards->end() || named->second == shard) continue;
      return absl::InvalidArgumentError(absl::StrCat(shard, ": tensor ", Escaped(tensor), ": also in ", named->second,
                                                     ", where ", kIndex, " places it"));
    }
  }
  return table;
}

}  // namespace

absl::StatusOr<TensorTable> OpenTensors(const std::string& dir) {
  const std::string single = absl::StrCat(dir, "/", kSingle);
  if (access(single.c_str(), F_OK) == 0) {
    auto file = SafetensorsFile::Open(single);
    if (!file.ok()) return file.status();
    TensorTable table = {.listing = kSingle};
    for (const auto& [tensor, entry] : (*file)->tensors()) table.tensors.emplace(tensor, PlacedTensor{*file, &entry});
    return table;
  }
  if (access(absl::StrCat(dir, "/", kIndex).c_str(), F_OK) == 0) return OpenSharded(dir);
  return absl::NotFoundError(absl::StrCat(dir, ": holds neither ", kSingle, " nor ", kIndex));
}

}  // namespace expertd
