// Products of matrices by cuBLASLt, in its column-major terms, and the cache of how each is done.
//
// strict: every call of one class, whatever its number of rows, takes the same algorithm, which neither
// splits K nor depends on how many rows there are; so a row's bits do not depend on its batch mates.
// run-to-run: the algorithm is a function of the call's shape. Workspace is the caller's, one for the stream.
#pragma once
#include <compare>
#include <map>
#include <memory>

#include "backend/cuda/cuda_backend.h"

namespace danceflux::cuda {

struct BlasFunctions;

enum class Epilogue : std::uint8_t { none, bias, gelu, gelu_bias };

/// Everything about a product that decides how it is done, but the number of columns of D (our rows) and of
/// batches.
struct ProductClass {
  DType a_type = DType::f32, b_type = DType::f32, d_type = DType::f32, bias_type = DType::f32;
  bool a_transposed = false, b_transposed = false, accumulate = false, batched = false;
  Epilogue epilogue = Epilogue::none;
  std::int64_t m = 0, k = 0;
  std::int64_t a_alignment = 16, b_alignment = 16, d_alignment = 16;  // bytes that pointers and columns keep
  auto operator<=>(const ProductClass&) const = default;
};

/// D [m, n] = alpha * op(A) [m, k] * op(B) [k, n] + beta * D, column-major, then the epilogue. With gelu,
/// what goes into it is left in `aux`, of D's type.
struct Product {
  ProductClass kind;
  std::int64_t n = 0, lda = 0, ldb = 0, ldd = 0, aux_ld = 0;
  std::int64_t batches = 1, a_step = 0, b_step = 0, d_step = 0;  // steps in elements
  const void *a = nullptr, *b = nullptr, *bias = nullptr;
  void *d = nullptr, *aux = nullptr;
  float alpha = 1;
};

class Blas {
 public:
  explicit Blas(CudaBackend& device);
  ~Blas();
  /// False: no algorithm does it (an epilogue that these types do not have). Nothing was written then.
  bool run(const Product& product);
  std::size_t plans() const { return algorithms_.size(); }

 private:
  struct Call;
  struct Algorithm;
  /// A class and, unless strict, the sizes.
  struct Key {
    ProductClass kind;
    std::int64_t n = 0, batches = 0;
    auto operator<=>(const Key&) const = default;
  };
  const Algorithm* algorithm_for(const Product& product);
  bool choose(const Product& product, Algorithm& chosen);

  CudaBackend& device_;
  std::unique_ptr<const BlasFunctions> functions_;
  void* handle_ = nullptr;
  void* workspace_ = nullptr;  // not a tensor: those keep their device alive
  std::map<Key, std::unique_ptr<Algorithm>> algorithms_;
};

}  // namespace danceflux::cuda
