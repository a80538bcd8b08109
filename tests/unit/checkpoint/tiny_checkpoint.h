// Small checkpoints for tests, written byte by byte and not by the code under test.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

namespace expertd::testing {

struct TinyTensor {
  std::string dtype = "BF16";
  std::vector<std::int64_t> shape;
  std::string bytes;
};

// A folder that is removed with the object.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// config.json and tensors, to be changed at will before Write.
struct TinyCheckpoint {
  std::string config;
  std::map<std::string, TinyTensor> tensors;

  // Adds a tensor of small random values: BF16, F16, F32, F8_E4M3 or U8 codes.
  void Add(const std::string& name, std::vector<std::int64_t> shape, const std::string& dtype = "BF16");
  // gate, up [F, D] and down [D, F] as <at>.{gate,up,down}_proj.weight, or the given three names.
  void AddExpert(const std::string& at, std::int64_t hidden, std::int64_t width, const std::string& dtype = "BF16",
                 const std::vector<std::string>& names = {"gate_proj", "up_proj", "down_proj"});

  // `shards` files with an index when above 1, tensors dealt round robin. `pad`: spaces behind each header.
  void Write(const std::string& dir, int shards = 1, std::size_t pad = 0) const;
};

// A file of these tensors, in the map's order.
std::string SafetensorsBytes(const std::map<std::string, TinyTensor>& tensors, std::size_t pad = 0);
// The length, this header, these bytes.
std::string RawSafetensors(const std::string& header, const std::string& data);

void WriteFile(const std::string& path, const std::string& bytes);
std::string ReadFile(const std::string& path);

}  // namespace expertd::testing
