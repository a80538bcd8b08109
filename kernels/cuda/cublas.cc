#include "kernels/cuda/cublas.h"

#include <dlfcn.h>

#include <limits>

#include "absl/strings/str_cat.h"

namespace expertd::cuda {
namespace {

// Declarations and values of cublas_v2.h and library_types.h, stable since CUDA 11; every function answers 0 or an
// error.
constexpr int kTransposed = 1, kAsItIs = 0, kFloat32 = 0, kBfloat16 = 14, kComputeFloat32 = 68, kDefaultAlgorithm = -1;

struct Library {
  int (*create)(void** handle) = nullptr;
  int (*destroy)(void* handle) = nullptr;
  int (*set_stream)(void* handle, void* stream) = nullptr;
  int (*set_workspace)(void* handle, void* workspace, std::size_t bytes) = nullptr;
  int (*multiply)(void* handle, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a, int type_a,
                  int lda, long long stride_a, const void* b, int type_b, int ldb, long long stride_b, const void* beta,
                  void* c, int type_c, int ldc, long long stride_c, int batch, int compute, int algorithm) = nullptr;
  std::string missing;  // what could not be found; empty: complete
};

Library Load() {
  Library library;
  void* const file = [] {
    for (const char* name : {"libcublas.so.13", "libcublas.so.12"}) {
      if (void* const found = dlopen(name, RTLD_NOW | RTLD_LOCAL); found != nullptr) return found;
    }
    return static_cast<void*>(nullptr);
  }();
  if (file == nullptr) {
    library.missing = "libcublas.so.13";
    return library;
  }
  const auto find = [&](const char* name, auto& function) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(file, name));
    if (function == nullptr) library.missing = name;
  };
  find("cublasCreate_v2", library.create);
  find("cublasDestroy_v2", library.destroy);
  find("cublasSetStream_v2", library.set_stream);
  find("cublasSetWorkspace_v2", library.set_workspace);
  find("cublasGemmStridedBatchedEx", library.multiply);
  return library;
}

const Library& TheLibrary() {
  static const Library* const kLibrary = new Library(Load());  // never unloaded: handles outlive everything
  return *kLibrary;
}

absl::Status Failed(int error, absl::string_view what) {
  if (error == 0) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(what, ": cuBLAS error ", error));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Cublas>> Cublas::Create() {
  const Library& library = TheLibrary();
  if (!library.missing.empty()) {
    return absl::FailedPreconditionError(absl::StrCat("the batched path needs cuBLAS: ", library.missing,
                                                      " was not found; LD_LIBRARY_PATH names where it is"));
  }
  std::unique_ptr<Cublas> cublas(new Cublas);
  if (absl::Status status = Failed(library.create(&cublas->handle_), "cublasCreate"); !status.ok()) return status;
  return cublas;
}

Cublas::~Cublas() {
  if (handle_ != nullptr) TheLibrary().destroy(handle_);
}

// cuBLAS counts columns first: its matrices are ours transposed, so it computes out^T = w . x^T.
absl::Status Cublas::Multiply(const Product& product, void* workspace, Stream stream) {
  const Library& library = TheLibrary();
  for (const std::int64_t size : {product.experts, product.rows, product.in, product.out_features}) {
    if (size > std::numeric_limits<int>::max()) {
      return absl::InvalidArgumentError(absl::StrCat("product: ", size, " is more than cuBLAS counts"));
    }
  }
  if (product.rows == 0) return absl::OkStatus();
  if (absl::Status status = Failed(library.set_stream(handle_, stream.handle), "cublasSetStream"); !status.ok()) {
    return status;
  }
  absl::Status status = Failed(library.set_workspace(handle_, workspace, kWorkspaceBytes), "cublasSetWorkspace");
  if (!status.ok()) return status;
  const float one = 1, zero = 0;
  const int type = product.element == Element::kBF16 ? kBfloat16 : kFloat32;
  const int out_type = product.wide_out ? kFloat32 : type;
  const auto rows = static_cast<int>(product.rows), in = static_cast<int>(product.in);
  const auto out_features = static_cast<int>(product.out_features);
  return Failed(library.multiply(handle_, kTransposed, kAsItIs, out_features, rows, in, &one, product.w, type, in,
                                 product.out_features * product.in, product.x, type, in, product.rows * product.in,
                                 &zero, product.out, out_type, out_features, product.rows * product.out_features,
                                 static_cast<int>(product.experts), kComputeFloat32, kDefaultAlgorithm),
                "cublasGemmStridedBatchedEx");
}

}  // namespace expertd::cuda
