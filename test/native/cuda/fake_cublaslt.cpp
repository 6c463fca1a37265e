// libcublasLt.so.13 for tests: does on the host what the descriptors say, and is as fussy as the real one
// about what they may say. Its algorithms differ in the order of their sums, and which one it recommends
// depends on the number of columns of D: whoever does not pin one gets other bits for another batch.
#include <cmath>
#include <cstring>
#include <vector>

#include "backend/cuda/formulas.h"
#include "emulated_stream.h"
#include "stand_in/cublasLt.h"

using danceflux::cuda::Bf16;
using danceflux::cuda::F16;
using danceflux::cuda::gelu_tanh_op;
using danceflux::cuda::narrow_to;
using danceflux::cuda::widen;

struct cublasLtContext {};
struct cublasLtMatmulDescOpaque_t {
  cublasComputeType_t compute;
  cublasOperation_t trans_a = CUBLAS_OP_N, trans_b = CUBLAS_OP_N;
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  const void* bias = nullptr;
  void* aux = nullptr;
  std::int64_t aux_ld = 0;
  std::int32_t bias_type = -1;
};
struct cublasLtMatrixLayoutOpaque_t {
  cudaDataType_t type;
  std::int64_t rows, columns, ld, step = 0;
  std::int32_t count = 1;
};
struct cublasLtMatmulPreferenceOpaque_t {
  std::uint64_t workspace = 0;
  std::uint32_t schemes = CUBLASLT_REDUCTION_SCHEME_MASK, alignment[4] = {256, 256, 256, 256};
};

namespace {

struct Algo {
  std::uint32_t block;   // products that are summed before the sum is added to the whole
  std::int32_t split_k;  // parts of K
  std::uint32_t alignment[4];
};

std::size_t size_of(cudaDataType_t type) { return type == CUDA_R_32F ? 4 : 2; }

float read(const void* base, cudaDataType_t type, std::int64_t i) {
  if (type == CUDA_R_32F) return static_cast<const float*>(base)[i];
  if (type == CUDA_R_16F) return widen(static_cast<const F16*>(base)[i]);
  return widen(static_cast<const Bf16*>(base)[i]);
}
void write(void* base, cudaDataType_t type, std::int64_t i, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(base)[i] = value;
  } else if (type == CUDA_R_16F) {
    static_cast<F16*>(base)[i] = narrow_to<F16>(value);
  } else {
    static_cast<Bf16*>(base)[i] = narrow_to<Bf16>(value);
  }
}

bool has_bias(cublasLtEpilogue_t e) {
  return e == CUBLASLT_EPILOGUE_BIAS || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}
bool has_aux(cublasLtEpilogue_t e) {
  return e == CUBLASLT_EPILOGUE_GELU_AUX || e == CUBLASLT_EPILOGUE_GELU_AUX_BIAS;
}

/// What the real one would refuse.
cublasStatus_t judge(const cublasLtMatmulDescOpaque_t& op, const cublasLtMatrixLayoutOpaque_t& a,
                     const cublasLtMatrixLayoutOpaque_t& b, const cublasLtMatrixLayoutOpaque_t& d) {
  const std::int64_t m = op.trans_a ? a.columns : a.rows, k = op.trans_a ? a.rows : a.columns;
  const std::int64_t k_of_b = op.trans_b ? b.columns : b.rows, n = op.trans_b ? b.rows : b.columns;
  if (m != d.rows || n != d.columns || k != k_of_b || m < 1 || n < 1 || k < 1)
    return CUBLAS_STATUS_INVALID_VALUE;
  for (const cublasLtMatrixLayoutOpaque_t* each : {&a, &b, &d})
    if (each->ld < each->rows || each->count != d.count) return CUBLAS_STATUS_INVALID_VALUE;
  if (a.type != b.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (d.type != CUDA_R_32F && d.type != a.type) return CUBLAS_STATUS_NOT_SUPPORTED;
  // A bias of 16-bit results is of 16 bits here: the pickier of the possible vendors.
  if (has_bias(op.epilogue) && op.bias_type != -1 && op.bias_type != d.type)
    return CUBLAS_STATUS_NOT_SUPPORTED;
  if (has_aux(op.epilogue) && (op.aux_ld < m || op.aux_ld % 8 != 0)) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (has_aux(op.epilogue) && d.count != 1) return CUBLAS_STATUS_NOT_SUPPORTED;
  return CUBLAS_STATUS_SUCCESS;
}

Algo unpack(const cublasLtMatmulAlgo_t& algo) {
  Algo mine;
  std::memcpy(&mine, algo.data, sizeof mine);
  return mine;
}

bool aligned(const void* address, std::uint32_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;
}

void multiply(const cublasLtMatmulDescOpaque_t& op, const cublasLtMatrixLayoutOpaque_t& a_layout,
              const cublasLtMatrixLayoutOpaque_t& b_layout, const cublasLtMatrixLayoutOpaque_t& d_layout,
              float scale, float keep, const Algo& how, const void* a, const void* b, void* d) {
  const std::int64_t m = d_layout.rows, n = d_layout.columns,
                     k = op.trans_a ? a_layout.rows : a_layout.columns;
  std::vector<float> left(static_cast<std::size_t>(k));
  for (std::int64_t batch = 0; batch < d_layout.count; ++batch)
    for (std::int64_t i = 0; i < m; ++i) {
      for (std::int64_t p = 0; p < k; ++p)
        left[static_cast<std::size_t>(p)] =
            read(a, a_layout.type,
                 batch * a_layout.step + (op.trans_a ? i * a_layout.ld + p : p * a_layout.ld + i));
      for (std::int64_t j = 0; j < n; ++j) {
        float sum = 0, part = 0;
        for (std::int64_t p = 0; p < k; ++p) {
          const std::int64_t at =
              batch * b_layout.step + (op.trans_b ? p * b_layout.ld + j : j * b_layout.ld + p);
          part += left[static_cast<std::size_t>(p)] * read(b, b_layout.type, at);
          if ((p + 1) % how.block == 0) {
            sum += part;
            part = 0;
          }
        }
        float value = scale * (sum + part);
        const std::int64_t to = batch * d_layout.step + j * d_layout.ld + i;
        if (keep != 0) value += keep * read(d, d_layout.type, to);
        if (has_bias(op.epilogue))
          value += read(op.bias,
                        op.bias_type == -1 ? d_layout.type : static_cast<cudaDataType_t>(op.bias_type), i);
        if (has_aux(op.epilogue)) {
          write(op.aux, d_layout.type, j * op.aux_ld + i, value);
          value = gelu_tanh_op::value(value, 1, 0);
        }
        write(d, d_layout.type, to, value);
      }
    }
}

}  // namespace

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return *handle = new cublasLtContext, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t compute,
                                        cudaDataType_t) {
  *made = new cublasLtMatmulDescOpaque_t{compute};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  delete description;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              std::size_t bytes) {
  const auto set = [&](auto& field) {
    if (bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  };
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(description->trans_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(description->trans_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(description->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(description->bias);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
      return set(description->aux);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
      return set(description->aux_ld);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
      return set(description->bias_type);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType type, std::uint64_t rows,
                                          std::uint64_t columns, std::int64_t ld) {
  *made = new cublasLtMatrixLayoutOpaque_t{type, static_cast<std::int64_t>(rows),
                                           static_cast<std::int64_t>(columns), ld};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete layout;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT && bytes == sizeof layout->count) {
    std::memcpy(&layout->count, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET && bytes == sizeof layout->step) {
    std::memcpy(&layout->step, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) {
  return *made = new cublasLtMatmulPreferenceOpaque_t, CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES && bytes == 8) {
    std::memcpy(&preference->workspace, value, 8);
  } else if (attribute == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK && bytes == 4) {
    std::memcpy(&preference->schemes, value, 4);
  } else if (attribute >= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
             attribute <= CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES && bytes == 4) {
    std::memcpy(&preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, 4);
  } else {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int asked,
                                              cublasLtMatmulHeuristicResult_t* results, int* got) {
  *got = 0;
  if (const cublasStatus_t status = judge(*description, *a, *b, *d)) return status;
  const auto add = [&](std::uint32_t block, std::int32_t split_k, std::size_t workspace) {
    if (*got == asked || workspace > preference->workspace) return;
    Algo algo{block, split_k, {}};
    std::memcpy(algo.alignment, preference->alignment, sizeof algo.alignment);
    cublasLtMatmulHeuristicResult_t& result = results[(*got)++];
    result = {};
    std::memcpy(result.algo.data, &algo, sizeof algo);
    result.workspaceSize = workspace;
    result.state = CUBLAS_STATUS_SUCCESS;
  };
  // The quickest first: few columns are cut along K, where that is allowed.
  if (d->columns < 64 && (preference->schemes & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE)) add(8, 3, 4096);
  add(static_cast<std::uint32_t>(4 + d->columns * d->count % 5), 1, 0);
  add(16, 1, 0);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t description,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* algo,
                                       cublasLtMatmulHeuristicResult_t* result) {
  result->algo = *algo;
  result->workspaceSize = unpack(*algo).split_k > 1 ? 4096 : 0;
  return judge(*description, *a, *b, *d);
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, std::size_t bytes, std::size_t* written) {
  if (attribute != CUBLASLT_ALGO_CONFIG_SPLITK_NUM || bytes != 4) return CUBLAS_STATUS_INVALID_VALUE;
  const std::int32_t split_k = unpack(*algo).split_k;
  std::memcpy(value, &split_k, 4);
  *written = 4;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t op, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo,
                              void* workspace, std::size_t workspace_bytes, cudaStream_t stream) {
  if (const cublasStatus_t status = judge(*op, *a_layout, *b_layout, *d_layout)) return status;
  if (c != d || c_layout != d_layout) return CUBLAS_STATUS_INVALID_VALUE;  // not what is tested here
  const Algo how = unpack(*algo);
  if (how.block == 0 || (how.split_k > 1 && (!workspace || workspace_bytes < 4096)))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (!aligned(a, how.alignment[0]) || !aligned(b, how.alignment[1]) || !aligned(d, how.alignment[3]))
    return CUBLAS_STATUS_EXECUTION_FAILED;
  for (const auto& [layout, bytes] :
       {std::pair{a_layout, how.alignment[0]}, {b_layout, how.alignment[1]}, {d_layout, how.alignment[3]}}) {
    if (layout->ld * static_cast<std::int64_t>(size_of(layout->type)) % bytes != 0 && layout->columns > 1)
      return CUBLAS_STATUS_EXECUTION_FAILED;
  }
  emulated::put(stream, [=, op = *op, a_layout = *a_layout, b_layout = *b_layout, d_layout = *d_layout,
                         scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta)] {
    multiply(op, a_layout, b_layout, d_layout, scale, keep, how, a, b, d);
  });
  return CUBLAS_STATUS_SUCCESS;
}
}
