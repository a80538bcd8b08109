#include "kernels/checkpoint/config.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <fstream>
#include <iterator>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kernels/checkpoint/strict_json.h"

namespace expertd {
namespace {

using nlohmann::json;

absl::Status Invalid(absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat("config.json: ", reason));
}

std::string TypeOf(const json& object) {
  const auto found = object.find("model_type");
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

}  // namespace

std::string QuoteJson(const json& value) {
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 57), "...");
  return text;
}

absl::StatusOr<ModelConfig> ModelConfig::Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  return Parse(text);
}

absl::StatusOr<ModelConfig> ModelConfig::Parse(absl::string_view text) {
  absl::StatusOr<json> root = ParseStrictJson(text);
  if (!root.ok()) return Invalid(root.status().message());
  if (!root->is_object()) return Invalid("not an object");
  ModelConfig config;
  config.outer_type_ = TypeOf(*root);
  if (root->contains("quantization_config")) config.quantization_ = (*root)["quantization_config"];
  const auto inner = root->find("text_config");
  if (inner != root->end() && inner->is_object()) {
    config.inner_type_ = TypeOf(*inner);
    if (inner->contains("quantization_config")) config.quantization_ = (*inner)["quantization_config"];
    json model = std::move(*inner);
    config.model_ = std::move(model);
  } else {
    config.model_ = *std::move(root);
  }
  return config;
}

absl::StatusOr<std::pair<absl::string_view, json>> ModelConfig::Find(const Keys& keys, std::int64_t layer) const {
  std::pair<absl::string_view, json> result;
  for (const absl::string_view key : keys.names) {
    if (key.empty()) break;
    const auto found = model_.find(std::string(key));
    if (found == model_.end() || found->is_null()) continue;
    json value = *found;
    if (value.is_array()) {
      if (layer < 0 || static_cast<std::size_t>(layer) >= value.size()) {
        return Invalid(absl::StrCat(key, ": a list of ", value.size(), " values has none for layer ", layer));
      }
      json element = std::move(value[static_cast<std::size_t>(layer)]);
      value = std::move(element);
    }
    if (result.first.empty()) {
      result = {key, std::move(value)};
    } else if (value != result.second) {
      return Invalid(
          absl::StrCat(result.first, "=", QuoteJson(result.second), " and ", key, "=", QuoteJson(value), " disagree"));
    }
  }
  return result;
}

template <class T, class Convert>
absl::StatusOr<T> ModelConfig::Get(const Keys& keys, std::int64_t layer, const std::optional<T>& missing,
                                   absl::string_view wanted, Convert convert) const {
  auto found = Find(keys, layer);
  if (!found.ok()) return found.status();
  const auto& [key, value] = *found;
  if (key.empty()) {
    if (missing.has_value()) return *missing;
    const auto end = std::find(keys.names.begin(), keys.names.end(), absl::string_view());
    return Invalid(absl::StrCat(absl::StrJoin(keys.names.begin(), end, " or "), ": missing"));
  }
  const std::optional<T> converted = convert(value);
  if (!converted.has_value()) return Invalid(absl::StrCat(key, ": ", QuoteJson(value), " is no ", wanted));
  return *converted;
}

absl::StatusOr<std::int64_t> ModelConfig::Integer(const Keys& keys, std::int64_t layer,
                                                  std::optional<std::int64_t> missing) const {
  return Get<std::int64_t>(keys, layer, missing, "64-bit integer",
                           [](const json& value) -> std::optional<std::int64_t> {
                             if (!value.is_number_integer()) return std::nullopt;
                             if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX)
                               return std::nullopt;
                             return value.get<std::int64_t>();
                           });
}

absl::StatusOr<double> ModelConfig::Number(const Keys& keys, std::int64_t layer, std::optional<double> missing) const {
  return Get<double>(keys, layer, missing, "f32 number", [](const json& value) -> std::optional<double> {
    if (!value.is_number() || !(std::abs(value.get<double>()) <= FLT_MAX)) return std::nullopt;
    return value.get<double>();
  });
}

absl::StatusOr<bool> ModelConfig::Bool(const Keys& keys, std::int64_t layer, std::optional<bool> missing) const {
  return Get<bool>(keys, layer, missing, "boolean", [](const json& value) -> std::optional<bool> {
    if (!value.is_boolean()) return std::nullopt;
    return value.get<bool>();
  });
}

absl::StatusOr<std::string> ModelConfig::String(const Keys& keys, std::int64_t layer,
                                                std::optional<std::string> missing) const {
  return Get<std::string>(keys, layer, missing, "string", [](const json& value) -> std::optional<std::string> {
    if (!value.is_string()) return std::nullopt;
    return value.get<std::string>();
  });
}

}  // namespace expertd
