// Any bytes as a checkpoint: it is refused with a reason that says where, or every weight of every layer that it offers
// can be read.
//
// A little-endian u32 says how long config.json is; it follows, and the rest is model.safetensors.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "kernels/checkpoint/checkpoint.h"

namespace expertd {
namespace {

void Require(bool holds, const absl::Status& status, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s (%s)\n", what, status.ToString().c_str());
  std::abort();
}

// A folder for the process, removed at its end.
struct Folder {
  std::string path = (std::filesystem::temp_directory_path() / "expertd-fuzz-XXXXXX").string();

  Folder() { Require(mkdtemp(path.data()) != nullptr, {}, "a temporary folder can be made"); }
  ~Folder() { std::filesystem::remove_all(path); }
  void Write(const char* name, const std::string& bytes) const {
    std::ofstream(path + name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
};

// A refusal is the file's fault, and says which file.
void CheckRefusal(const absl::Status& status) {
  Require(absl::IsInvalidArgument(status) || absl::IsUnimplemented(status), status, "broken files are refused as such");
  const bool named = status.message().find("config.json") != absl::string_view::npos ||
                     status.message().find("safetensors") != absl::string_view::npos;
  Require(named, status, "the reason names the file");
}

void ReadAll(const Checkpoint& checkpoint, const LayerSpec& spec) {
  const absl::Status valid = spec.Validate();
  Require(valid.ok(), valid, "a layer that is offered is valid");
  const auto source = checkpoint.OpenLayer(spec.layer);
  if (!source.ok()) return CheckRefusal(source.status());
  Require((*source)->spec().Canonical() == spec.Canonical(), {}, "the layer is the one that was listed");
  const auto fingerprint = (*source)->Fingerprint();  // reads every byte
  Require(fingerprint.ok(), fingerprint.status(), "what was opened can be read");
}

}  // namespace
}  // namespace expertd

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::uint32_t config_bytes = 0;
  if (size < sizeof(config_bytes)) return 0;
  std::memcpy(&config_bytes, data, sizeof(config_bytes));
  const std::string rest(reinterpret_cast<const char*>(data) + sizeof(config_bytes), size - sizeof(config_bytes));
  if (config_bytes > rest.size()) return 0;

  static const expertd::Folder folder;
  folder.Write("/config.json", rest.substr(0, config_bytes));
  folder.Write("/model.safetensors", rest.substr(config_bytes));
  const auto checkpoint = expertd::Checkpoint::Open(folder.path, {.model = "fuzzed", .family = {}});
  if (!checkpoint.ok()) {
    expertd::CheckRefusal(checkpoint.status());
    return 0;
  }
  for (const expertd::LayerSpec& spec : (*checkpoint)->layers()) expertd::ReadAll(**checkpoint, spec);
  return 0;
}
