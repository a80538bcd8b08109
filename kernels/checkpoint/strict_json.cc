#include "kernels/checkpoint/strict_json.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

using nlohmann::json;

// Builds the value while it listens to the parser; returning false ends the parse.
class Builder : public nlohmann::json_sax<json> {
 public:
  bool null() override { return Put(nullptr); }
  bool boolean(bool value) override { return Put(value); }
  bool number_integer(number_integer_t value) override { return Put(value); }
  bool number_unsigned(number_unsigned_t value) override { return Put(value); }
  bool number_float(number_float_t value, const string_t&) override { return Put(value); }
  bool string(string_t& value) override { return Put(std::move(value)); }
  bool binary(binary_t&) override { return Fail("binary values are no JSON"); }
  bool start_object(std::size_t) override { return Open(json::object()); }
  bool start_array(std::size_t) override { return Open(json::array()); }
  bool end_object() override { return Close(); }
  bool end_array() override { return Close(); }

  bool key(string_t& name) override {
    json& object = *open_.back();
    if (object.contains(name)) return Fail(absl::StrCat("duplicate key \"", absl::Utf8SafeCEscape(name), "\""));
    slot_ = &object[name];
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& error) override {
    // The library's text leads with its own error code and may quote raw bytes; the position is what helps.
    const bool out_of_range = error.id == 406;
    return Fail(absl::StrCat(out_of_range ? "a number is out of range" : "not valid JSON", " at byte ", position));
  }

  json root;
  std::string error;

 private:
  bool Fail(std::string reason) {
    error = std::move(reason);
    return false;
  }

  json* Place(json value) {
    if (open_.empty()) {
      root = std::move(value);
      return &root;
    }
    json& parent = *open_.back();
    if (parent.is_array()) return &parent.emplace_back(std::move(value));
    return &(*slot_ = std::move(value));
  }
  bool Put(json value) {
    Place(std::move(value));
    return true;
  }
  bool Open(json value) {
    if (open_.size() == kMaxJsonDepth) return Fail(absl::StrCat("nested deeper than ", kMaxJsonDepth));
    open_.push_back(Place(std::move(value)));
    return true;
  }
  bool Close() {
    open_.pop_back();
    return true;
  }

  // A parent does not change while a child of it is open, so these pointers hold.
  std::vector<json*> open_;
  json* slot_ = nullptr;
};

}  // namespace

absl::StatusOr<json> ParseStrictJson(absl::string_view text) {
  Builder builder;
  if (!json::sax_parse(text.begin(), text.end(), &builder)) return absl::InvalidArgumentError(builder.error);
  return std::move(builder.root);
}

}  // namespace expertd
