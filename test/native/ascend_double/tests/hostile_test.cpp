// What goes wrong quietly on hardware goes wrong here too: HF32, order of sums, generations, missing symbols.
#include <cmath>
#include <set>

#include "tools.h"

using namespace double_test;

namespace {

std::vector<double> product(const Session& session, const Array& a, const Array& b, std::int8_t cube) {
  Array c({a.shape[0], b.shape[1]});
  run(session, "Mm", in(a), in(b), out(c), cube);
  return c.values();
}

/// How many different results twelve runs give.
std::size_t outcomes(const std::function<std::vector<double>()>& once) {
  std::set<std::vector<double>> seen;
  for (int i = 0; i < 12; ++i) seen.insert(once());
  return seen.size();
}

}  // namespace

TEST("cubeMathType: 0 is f32, 1 and 3 are HF32, 2 is f16 and nothing for BF16") {
  Session session;
  const float value = 1 + 0x1p-13f;  // lost with 11 bits of mantissa
  Array a({1, 1}, std::vector<double>{value}), b({1, 1}, std::vector<double>{1});
  CHECK_EQ(product(session, a, b, 0)[0], value);
  CHECK_EQ(product(session, a, b, 1)[0], 1.0);
  CHECK_EQ(product(session, a, b, 3)[0], 1.0);
  CHECK_EQ(product(session, a, b, 2)[0], 1.0);
  Array brain({1, 1}, std::vector<double>{1}, ACL_BF16);
  CHECK_EQ(refusal("Mm", in(brain), in(brain), out(brain), std::int8_t{2}), 161002);
  CHECK_EQ(refusal("Mm", in(a), in(b), out(a), std::int8_t{7}), 161002);
}

TEST("matrix dtypes do not mix") {
  Session session;
  Array a({2, 2}), brain({2, 2}, ACL_BF16), half({2, 2}, ACL_FLOAT16);
  CHECK_EQ(refusal("Matmul", in(a), in(brain), out(a), std::int8_t{0}), 161002);
  CHECK_EQ(refusal("Matmul", in(half), in(brain), out(a), std::int8_t{0}), 161002);
  CHECK(message().find("mat2") != std::string::npos);
  Array integers({2, 2}, ACL_INT32);
  CHECK_EQ(refusal("Matmul", in(integers), in(integers), out(integers), std::int8_t{0}), 161002);
}

TEST("sums come in any order until both scopes say otherwise") {
  Session session;
  const std::int64_t k = 2000;
  Array a({3, k}, numbers(3 * k, 1)), b({k, 3}, numbers(3 * k, 2));
  const auto once = [&] { return product(session, a, b, 0); };
  CHECK(outcomes(once) > 1);
  OK(call("aclrtSetSysParamOpt", 0, std::int64_t{1}));
  CHECK(outcomes(once) > 1);
  OK(call("aclrtSetSysParamOpt", 0, std::int64_t{0}));
  OK(call("aclrtCtxSetSysParamOpt", 0, std::int64_t{1}));
  CHECK(outcomes(once) > 1);
  session.deterministic(true);
  CHECK_EQ(outcomes(once), 1u);
}

TEST("the other ops that are deterministic on request only") {
  Session session;
  const std::int64_t rows = 400, width = 8;
  Array x({rows, width}, numbers(rows * width, 1)), g({rows, width}, numbers(rows * width, 2)),
      w({width}, numbers(width, 3));
  Array rstd({rows, 1}, std::vector<double>(rows, 1.25)), dx({rows, width}), dw({width}), norm({1});
  Array table({4, width}, std::vector<double>(4 * width)),
      ids({rows}, std::vector<double>(rows, 1), ACL_INT64);
  const auto axes = ints({});
  const auto two = scalar(2), one = scalar(1);
  const std::function<std::vector<double>()> cases[] = {
      [&] {
        run(session, "RmsNormGrad", in(g), in(x), in(rstd), in(w), in(dx), in(dw));
        return dw.values();
      },
      [&] {
        Array flat({1}, ACL_FLOAT);
        run(session, "Norm", x.view({rows * width}, {1}), static_cast<const aclScalar*>(two),
            static_cast<const aclIntArray*>(axes), true, out(norm));
        return norm.values();
      },
      [&] {
        run(session, "EmbeddingDenseBackward", in(g), in(ids), std::uint64_t{4}, std::uint64_t(-1), false,
            in(table));
        return table.values();
      },
      [&] {
        Array sums({4, width});
        Array zero({4, width}, std::vector<double>(4 * width));
        run(session, "IndexAdd", in(zero), std::int64_t{0}, in(ids), in(g),
            static_cast<const aclScalar*>(one), out(sums));
        return sums.values();
      },
  };
  for (const auto& once : cases) {
    session.deterministic(false);
    CHECK(outcomes(once) > 1);
    session.deterministic(true);
    CHECK_EQ(outcomes(once), 1u);
  }
}

TEST("a row's bits depend on where it stands unless the K shift is closed") {
  if (std::getenv("CLOSE_MATMUL_K_SHIFT")) {
    Session session;
    session.deterministic(true);
    const std::int64_t k = 1000;
    const std::vector<double> row = numbers(k, 1);
    std::vector<double> all;
    for (int i = 0; i < 200; ++i) all.insert(all.end(), row.begin(), row.end());
    Array a({200, k}, all), b({k, 1}, numbers(k, 2));
    std::set<double> values;
    for (const double value : product(session, a, b, 0)) values.insert(value);
    const bool closed = std::string(std::getenv("CLOSE_MATMUL_K_SHIFT")) == "1";
    CHECK_EQ(values.size() == 1, closed);
    return;
  }
  CHECK_EQ(rerun("a row's bits depend", {{"CLOSE_MATMUL_K_SHIFT", "1"}}), 0);
  CHECK_EQ(rerun("a row's bits depend", {{"CLOSE_MATMUL_K_SHIFT", "0"}}), 0);
}

TEST("generation 1 has no BF16, no f32 matrices and no rotary embedding") {
  Session session;
  With chip("SOC", "Ascend910B");  // gen 1, whatever it looks like
  Array a({2, 2}, std::vector<double>(4, 1.0)), brain({2, 2}, ACL_BF16), x({1, 1, 1, 2}), y({1, 1, 1, 2});
  CHECK_EQ(refusal("Exp", in(brain), out(brain)), 161002);
  CHECK_EQ(refusal("Mm", in(a), in(a), out(a), std::int8_t{0}), 161002);
  CHECK_EQ(refusal("Mm", in(a), in(a), out(a), std::int8_t{1}), 0);
  CHECK_EQ(refusal("RotaryPositionEmbedding", in(x), in(x), in(x), std::int64_t{1}, out(y)), 161002);
}

TEST("each library has its own functions and no other's") {
  const bool nine = layout()[0] == '9';
  CHECK(find_in("libascendcl.so", "aclrtMalloc") != nullptr);
  CHECK(find_in("libascendcl.so", "aclCreateTensor") == nullptr);
  CHECK(find_in("libascendcl.so", "aclnnExp") == nullptr);
  CHECK(find_in("libnnopbase.so", "aclCreateTensor") != nullptr);
  CHECK(find_in("libhccl.so", "HcclAllReduce") != nullptr);
  CHECK_EQ(find_in("libhccl.so", "HcclCommInitRootInfo") != nullptr, !nine);
  CHECK_EQ(find_in("libhcomm.so", "HcclCommInitRootInfo") != nullptr, nine);
  CHECK_EQ(find_in("libopapi.so", "aclnnMatmul") != nullptr, !nine);
  CHECK_EQ(find_in("libopapi_nn.so", "aclnnMatmul") != nullptr, nine);
  CHECK_EQ(find_in("libopapi_math.so", "aclnnAdd") != nullptr, nine);
  CHECK(find_in("libopapi_math.so", "aclnnMatmul") == nullptr);
  CHECK_EQ(find_in("libacl_rt.so", "aclrtMalloc") != nullptr, nine);
  CHECK_EQ(find("aclnnAdaLayerNorm") != nullptr, nine);
  CHECK_EQ(find("aclFinalizeReference") != nullptr, nine);
  CHECK(find("ascend_double_violations") != nullptr);
  Session session;
  std::int32_t version[3] = {};
  OK(call("aclrtGetVersion", version, version + 1, version + 2));
  CHECK_EQ(version[1], nine ? 16 : 13);
}

TEST("the layout of CANN 9 passes every test as well") {
  if (layout()[0] == '9') return;
  CHECK_EQ(rerun("", {{"ASCEND_DOUBLE_LAYOUT", "9.0"}}), 0);
}

TEST("symbols that are missing are not found") {
  if (!std::getenv("ASCEND_DOUBLE_MISSING")) {
    CHECK(find("aclnnRotaryPositionEmbedding") != nullptr);
    CHECK_EQ(rerun("symbols that are missing",
                   {{"ASCEND_DOUBLE_MISSING", "aclnnRotaryPositionEmbedding,aclrtMallocAlign32"}}),
             0);
    return;
  }
  CHECK(find("aclnnRotaryPositionEmbedding") == nullptr);
  CHECK(find("aclnnRotaryPositionEmbeddingGetWorkspaceSize") == nullptr);
  CHECK(find("aclrtMallocAlign32") == nullptr);
  CHECK(find("aclnnRotaryPositionEmbeddingGrad") != nullptr);
  CHECK(find("aclnnSiluBackward") != nullptr);
}

TEST("streams that run at once or by chance give the same results") {
  for (const char* policy : {"eager", "random"}) {
    Session session;
    With streams("STREAMS", policy);
    With delay("DELAY_US", "200");
    Array x({8}, numbers(8, 1)), y({8}), z({8});
    run(session, "Exp", in(x), out(y));
    for (int i = 0; i < 20; ++i) run(session, "Mul", in(y), in(x), out(z));
    CHECK_NEAR(z.values()[3], x.values()[3] * std::exp(x.values()[3]), 1e-6);
    CHECK(violations().empty());
  }
}
