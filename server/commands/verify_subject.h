// Whoever is verified: an engine in this process, or a server at the other end of a channel.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layer_source.h"
#include "kernels/reference/compare.h"
#include "kernels/reference/layer.h"
#include "kernels/tensor.h"

namespace expertd {

// One layer, ready to be asked. Single-threaded.
class VerifySubject {
 public:
  virtual ~VerifySubject() = default;

  // Runs the rows, rounded to `dtype` (kBF16 or kF32), and answers in f32; with the routing when server-routed.
  virtual absl::StatusOr<reference::Answer> Run(const reference::LayerRows& rows, DType dtype) = 0;
  virtual const std::string& fingerprint() const = 0;
  virtual std::string path() const = 0;  // how it computes: Layer::path()
};

// A layer that the subject holds.
struct SubjectLayer {
  std::int64_t layer = 0;
  std::int64_t hidden_size = 0;
};

class VerifySubjects {
 public:
  virtual ~VerifySubjects() = default;
  virtual std::string description() const = 0;
  virtual std::vector<SubjectLayer> layers() const = 0;
  // Makes one of layers() ready. `source` holds its weights; null when there is no checkpoint.
  virtual absl::StatusOr<std::unique_ptr<VerifySubject>> Open(std::int64_t layer, const LayerSource* source) = 0;
};

// Loads layers into a new engine, one at a time. Every layer of `layers` needs a source. Errors as MakeEngine.
absl::StatusOr<std::unique_ptr<VerifySubjects>> MakeEngineSubjects(const std::string& device, const std::string& path,
                                                                   std::vector<SubjectLayer> layers);

// Asks the server at "host:port" or "unix:path", without encryption, about its model `model` (empty: its only one).
// Unavailable: no answer; NotFound and InvalidArgument: it does not serve that model, or several.
absl::StatusOr<std::unique_ptr<VerifySubjects>> ConnectServerSubjects(const std::string& endpoint,
                                                                      const std::string& model);

}  // namespace expertd
