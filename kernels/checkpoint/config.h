// Typed access to a model's config.json. Messages name file, key and value. Private to kernels/checkpoint.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace expertd {

// Names of one setting, by preference; unused ones are empty.
struct Keys {
  std::array<absl::string_view, 3> names;
  constexpr Keys(absl::string_view a = {}, absl::string_view b = {}, absl::string_view c = {}) : names{a, b, c} {}
  constexpr Keys(const char* a) : names{a} {}
  constexpr bool empty() const { return names[0].empty(); }
};

// A value as messages quote it: one line, ASCII, not too long.
std::string QuoteJson(const nlohmann::json& value);

// The object that describes the language model: config.json itself, or its text_config where there is one.
class ModelConfig {
 public:
  // InvalidArgument: unreadable, no JSON, no object; NotFound: no file.
  static absl::StatusOr<ModelConfig> Read(const std::string& path);
  // Of config.json's text.
  static absl::StatusOr<ModelConfig> Parse(absl::string_view text);

  // config.json:model_type, then text_config's; empty when absent.
  const std::string& outer_type() const { return outer_type_; }
  const std::string& inner_type() const { return inner_type_; }
  // Null when absent.
  const nlohmann::json& quantization() const { return quantization_; }

  // The value of the first key that is present and not null; `missing` when none is. A list holds one value per layer.
  // InvalidArgument: none is present and `missing` is empty, the wrong type, a list without this layer, two keys that
  // disagree.
  absl::StatusOr<std::int64_t> Integer(const Keys& keys, std::int64_t layer, std::optional<std::int64_t> missing) const;
  absl::StatusOr<double> Number(const Keys& keys, std::int64_t layer, std::optional<double> missing) const;
  absl::StatusOr<bool> Bool(const Keys& keys, std::int64_t layer, std::optional<bool> missing) const;
  absl::StatusOr<std::string> String(const Keys& keys, std::int64_t layer, std::optional<std::string> missing) const;

 private:
  absl::StatusOr<std::pair<absl::string_view, nlohmann::json>> Find(const Keys& keys, std::int64_t layer) const;
  template <class T, class Convert>
  absl::StatusOr<T> Get(const Keys& keys, std::int64_t layer, const std::optional<T>& missing, absl::string_view wanted,
                        Convert convert) const;

  nlohmann::json model_;
  nlohmann::json quantization_;
  std::string outer_type_;
  std::string inner_type_;
};

}  // namespace expertd
