#include "backend/cuda/blas.h"

#include <cublasLt.h>

#include <algorithm>
#include <sstream>

#include "backend/cuda/libraries.h"
#include "core/error.h"

namespace danceflux::cuda {

// clang-format off
#define DANCEFLUX_BLAS_FUNCTIONS(X) \
  X(cublasLtCreate) X(cublasLtDestroy) X(cublasLtMatmul) X(cublasLtMatmulDescCreate) X(cublasLtMatmulDescDestroy) \
  X(cublasLtMatmulDescSetAttribute) X(cublasLtMatrixLayoutCreate) X(cublasLtMatrixLayoutDestroy) \
  X(cublasLtMatrixLayoutSetAttribute) X(cublasLtMatmulPreferenceCreate) X(cublasLtMatmulPreferenceDestroy) \
  X(cublasLtMatmulPreferenceSetAttribute) X(cublasLtMatmulAlgoGetHeuristic) X(cublasLtMatmulAlgoCheck) \
  X(cublasLtMatmulAlgoConfigGetAttribute)
// clang-format on

struct BlasFunctions {
#define DF_MEMBER(name) decltype(&::name) name = nullptr;
  DANCEFLUX_BLAS_FUNCTIONS(DF_MEMBER)
#undef DF_MEMBER

  BlasFunctions() {
    std::string why;
    void* handle = open_library(blas_library(), &why);
    if (!handle)
      throw Error("ERR_PLUGIN_LOAD_FAILED", "cuda: expected cuBLASLt, got none: " + why,
                  std::string("install ") + blas_library().brought_by);
#define DF_FIND(name) name = reinterpret_cast<decltype(name)>(find_symbol(handle, blas_library(), #name));
    DANCEFLUX_BLAS_FUNCTIONS(DF_FIND)
#undef DF_FIND
  }
};

namespace {

constexpr std::size_t kWorkspace = std::size_t{32} << 20;
/// Numbers of rows that a strict algorithm must take: from one to many images.
constexpr std::int64_t kProbes[] = {1, 17, 256, 2048, 65536};
constexpr std::int64_t kTypicalRows = 2048;
constexpr int kCandidates = 32;

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_32F;
}

bool has_gelu(Epilogue epilogue) { return epilogue == Epilogue::gelu || epilogue == Epilogue::gelu_bias; }
bool has_bias(Epilogue epilogue) { return epilogue == Epilogue::bias || epilogue == Epilogue::gelu_bias; }

cublasLtEpilogue_t epilogue_of(Epilogue epilogue) {
  switch (epilogue) {
    case Epilogue::bias:
      return CUBLASLT_EPILOGUE_BIAS;
    case Epilogue::gelu:
      return CUBLASLT_EPILOGUE_GELU_AUX;
    case Epilogue::gelu_bias:
      return CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
    default:
      return CUBLASLT_EPILOGUE_DEFAULT;
  }
}

std::string words_of(const Product& product) {
  std::ostringstream text;
  text << name_of(product.kind.a_type) << " x " << name_of(product.kind.b_type) << " to "
       << name_of(product.kind.d_type) << ", m " << product.kind.m << ", n " << product.n << ", k "
       << product.kind.k << ", batches " << product.batches;
  return text.str();
}

void check_blas(cublasStatus_t status, const char* call, const Product& product) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw Error("ERR_CUDA", std::string("matmul: expected ") + call + " to succeed, got cuBLAS status " +
                              std::to_string(static_cast<int>(status)) + " for " + words_of(product));
}

}  // namespace

struct Blas::Algorithm {
  bool found = false;
  cublasLtMatmulAlgo_t algo{};
};

/// Descriptors of one product; cuBLASLt copies what they say into its launch.
struct Blas::Call {
  const BlasFunctions& f;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, d = nullptr;

  Call(const BlasFunctions& functions, const Product& p, bool tf32) : f(functions) {
    const bool fast = tf32 && p.kind.a_type == DType::f32;
    check_blas(f.cublasLtMatmulDescCreate(
                   &operation, fast ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F, CUDA_R_32F),
               "cublasLtMatmulDescCreate", p);
    set(p, CUBLASLT_MATMUL_DESC_TRANSA, p.kind.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p, CUBLASLT_MATMUL_DESC_TRANSB, p.kind.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(p, CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(p.kind.epilogue));
    if (has_bias(p.kind.epilogue)) {
      set(p, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p.bias);
      set(p, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, type_of(p.kind.bias_type));
    }
    if (has_gelu(p.kind.epilogue)) {
      set(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p.aux);
      set(p, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p.aux_ld);
    }
    a = layout(p, p.kind.a_type, p.kind.a_transposed ? p.kind.k : p.kind.m,
               p.kind.a_transposed ? p.kind.m : p.kind.k, p.lda, p.a_step);
    b = layout(p, p.kind.b_type, p.kind.b_transposed ? p.n : p.kind.k, p.kind.b_transposed ? p.kind.k : p.n,
               p.ldb, p.b_step);
    d = layout(p, p.kind.d_type, p.kind.m, p.n, p.ldd, p.d_step);
  }
  ~Call() {
    for (cublasLtMatrixLayout_t each : {a, b, d})
      if (each) f.cublasLtMatrixLayoutDestroy(each);
    if (operation) f.cublasLtMatmulDescDestroy(operation);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  template <class Value>
  void set(const Product& p, cublasLtMatmulDescAttributes_t attribute, const Value& value) {
    check_blas(f.cublasLtMatmulDescSetAttribute(operation, attribute, &value, sizeof value),
               "cublasLtMatmulDescSetAttribute", p);
  }
  cublasLtMatrixLayout_t layout(const Product& p, DType dtype, std::int64_t rows, std::int64_t columns,
                                std::int64_t ld, std::int64_t step) {
    cublasLtMatrixLayout_t made = nullptr;
    check_blas(f.cublasLtMatrixLayoutCreate(&made, type_of(dtype), static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(columns), ld),
               "cublasLtMatrixLayoutCreate", p);
    if (!p.kind.batched) return made;
    const auto count = static_cast<std::int32_t>(p.batches);
    check_blas(
        f.cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count),
        "cublasLtMatrixLayoutSetAttribute", p);
    check_blas(f.cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &step,
                                                  sizeof step),
               "cublasLtMatrixLayoutSetAttribute", p);
    return made;
  }
};

Blas::Blas(CudaBackend& device) : device_(device), functions_(std::make_unique<BlasFunctions>()) {
  cublasLtHandle_t handle = nullptr;
  check_blas(functions_->cublasLtCreate(&handle), "cublasLtCreate", {});
  handle_ = handle;
}

Blas::~Blas() {
  if (workspace_) device_.release(workspace_, kWorkspace);
  if (handle_) functions_->cublasLtDestroy(static_cast<cublasLtHandle_t>(handle_));
}

// The product as it would be with another number of rows, dense: what a strict algorithm is chosen and
// checked with.
static Product with_rows(Product product, std::int64_t rows) {
  product.n = rows;
  if (product.kind.b_transposed) product.ldb = std::max(product.ldb, (rows + 7) / 8 * 8);
  product.batches = product.kind.batched ? 8 : 1;
  product.b_step =
      std::max(product.b_step, product.ldb * (product.kind.b_transposed ? product.kind.k : rows));
  product.d_step = std::max(product.d_step, product.ldd * rows);
  return product;
}

bool Blas::choose(const Product& product, Algorithm& chosen) {
  const BlasFunctions& f = *functions_;
  const Determinism level = device_.options().determinism;
  const bool strict = level == Determinism::strict;
  const Product typical = strict ? with_rows(product, kTypicalRows) : product;
  const Call call(f, typical, device_.options().tf32);
  cublasLtMatmulPreference_t preference = nullptr;
  check_blas(f.cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate", product);
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(f.cublasLtMatmulPreferenceDestroy)> owner(
      preference, f.cublasLtMatmulPreferenceDestroy);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check_blas(f.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value),
               "cublasLtMatmulPreferenceSetAttribute", product);
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{kWorkspace});
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<std::uint32_t>(product.kind.a_alignment));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<std::uint32_t>(product.kind.b_alignment));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<std::uint32_t>(product.kind.d_alignment));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<std::uint32_t>(product.kind.d_alignment));
  // Parts of a sum that are joined through memory in the order in which they come would be another sum each
  // time.
  std::uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK;
  if (strict) schemes = CUBLASLT_REDUCTION_SCHEME_NONE;
  if (level == Determinism::run_to_run) schemes = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, schemes);
  cublasLtMatmulHeuristicResult_t results[kCandidates] = {};
  int count = 0;
  const cublasStatus_t status =
      f.cublasLtMatmulAlgoGetHeuristic(static_cast<cublasLtHandle_t>(handle_), call.operation, call.a, call.b,
                                       call.d, call.d, preference, kCandidates, results, &count);
  // Types or an epilogue that this version does not have: there may be another way.
  if (status != CUBLAS_STATUS_SUCCESS) return false;
  const auto takes = [&](const cublasLtMatmulAlgo_t& algo, const Product& other) {
    const Call probe(f, other, device_.options().tf32);
    cublasLtMatmulHeuristicResult_t result{};
    return f.cublasLtMatmulAlgoCheck(static_cast<cublasLtHandle_t>(handle_), probe.operation, probe.a,
                                     probe.b, probe.d, probe.d, &algo, &result) == CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspace;
  };
  const auto whole_sums = [&](const cublasLtMatmulAlgo_t& algo) {
    std::int32_t split = 0;
    std::size_t written = 0;
    check_blas(f.cublasLtMatmulAlgoConfigGetAttribute(&algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split,
                                                      sizeof split, &written),
               "cublasLtMatmulAlgoConfigGetAttribute", product);
    return split <= 1;
  };
  for (int i = 0; i < count; ++i) {
    if (results[i].state != CUBLAS_STATUS_SUCCESS) continue;
    const cublasLtMatmulAlgo_t& algo = results[i].algo;
    if (strict && !(whole_sums(algo) && takes(algo, product) &&
                    std::all_of(std::begin(kProbes), std::end(kProbes),
                                [&](std::int64_t rows) { return takes(algo, with_rows(product, rows)); })))
      continue;
    chosen.algo = algo;
    return true;
  }
  return false;
}

const Blas::Algorithm* Blas::algorithm_for(const Product& product) {
  Key key{product.kind};
  if (device_.options().determinism != Determinism::strict) {
    key.n = product.n;
    key.batches = product.batches;
  }
  std::unique_ptr<Algorithm>& entry = algorithms_[key];
  if (!entry) {
    auto made = std::make_unique<Algorithm>();
    made->found = choose(product, *made);
    entry = std::move(made);
  }
  return entry->found ? entry.get() : nullptr;
}

bool Blas::run(const Product& product) {
  const Algorithm* algorithm = algorithm_for(product);
  if (!algorithm) return false;
  if (!workspace_) {
    device_.workspace_changes();
    workspace_ = device_.allocate(kWorkspace);
  }
  const Call call(*functions_, product, device_.options().tf32);
  const float beta = product.kind.accumulate ? 1.0f : 0.0f;
  check_blas(
      functions_->cublasLtMatmul(static_cast<cublasLtHandle_t>(handle_), call.operation, &product.alpha,
                                 product.a, call.a, product.b, call.b, &beta, product.d, call.d, product.d,
                                 call.d, &algorithm->algo, workspace_, kWorkspace, device_.stream()),
      "cublasLtMatmul", product);
  device_.launched();
  return true;
}

}  // namespace danceflux::cuda
