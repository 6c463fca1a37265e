// Matrix products and the thread pool: against loops in double, and bit for bit against themselves.
#include <atomic>
#include <thread>

#include "backend/cpu/parallel.h"
#include "cpu_test_tools.h"

namespace danceflux::test {
namespace {

// Partial sums of values in (-1, 1) grow like sqrt(k) / 3, and each addition rounds to 2^-24 of them: the
// error of the chain has a standard deviation of about 1e-8 * depth. Six of those.
double product_tolerance(std::int64_t depth, float alpha) {
  return 6e-8 * static_cast<double>(depth + 4) * std::max(1.0f, std::abs(alpha));
}

struct Layout {
  const char* name;
  bool a_turned, b_turned;
};
constexpr Layout kLayouts[] = {
    {"NN", false, false}, {"NT", false, true}, {"TN", true, false}, {"TT", true, true}};

Tensor matrix(Backend& backend, std::int64_t rows, std::int64_t columns, bool turned, std::uint64_t seed,
              DType dtype = DType::f32) {
  return turned ? random_tensor(backend, {columns, rows}, seed, dtype).transpose(0, 1)
                : random_tensor(backend, {rows, columns}, seed, dtype);
}

// Every element, or some thousand of a large product.
void check_product(const Tensor& out, const std::vector<float>& before, const Tensor& a, const Tensor& b,
                   const Tensor& bias, const MatmulArgs& args, const std::string& what) {
  const std::int64_t rows = out.dim(-2), columns = out.dim(-1), depth = a.dim(-1);
  const std::int64_t step = std::max<std::int64_t>(1, rows * columns / 3000);
  const std::vector<double> a_values = widened(a), b_values = widened(b.transpose(0, 1));
  for (std::int64_t at = 0; at < rows * columns; at += step) {
    const std::int64_t i = at / columns, j = at % columns;
    double sum = 0;
    for (std::int64_t k = 0; k < depth; ++k)
      sum += a_values[static_cast<std::size_t>(i * depth + k)] *
             b_values[static_cast<std::size_t>(j * depth + k)];
    double wanted = args.alpha * sum + (bias.defined() ? element(bias, {j}) : 0);
    if (args.accumulate) wanted += before[static_cast<std::size_t>(at)];
    const double got = element(out, {i, j});
    if (!(std::abs(got - wanted) <= product_tolerance(depth, args.alpha)))
      fail_at(__FILE__, __LINE__, what, " at ", i, ", ", j, ": expected ", wanted, ", got ", got);
  }
}

void try_product(Backend& backend, std::int64_t m, std::int64_t n, std::int64_t k, const Layout& layout,
                 DType a_type, DType b_type, bool with_bias, const MatmulArgs& args) {
  const Tensor a = matrix(backend, m, k, layout.a_turned, 1, a_type),
               b = matrix(backend, k, n, layout.b_turned, 2, b_type);
  const Tensor bias = with_bias ? random_tensor(backend, {n}, 3) : Tensor();
  const Tensor out = random_tensor(backend, {m, n}, 4);
  const std::vector<float> before = values_of(backend, out);
  backend.matmul(out, a, b, bias, args);
  std::ostringstream what;
  what << backend.description() << ' ' << layout.name << ' ' << m << 'x' << n << 'x' << k << ' '
       << name_of(a_type) << ' ' << name_of(b_type);
  check_product(out, before, a, b, bias, args, what.str());
}

}  // namespace

TEST("matmul: odd sizes in every layout and kernel set") {
  const std::int64_t sizes[] = {0, 1, 2, 3, 5, 8, 13, 17, 31, 33, 48, 65, 100};
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    Numbers pick(7);
    const auto one = [&] {
      return sizes[static_cast<std::size_t>((pick.next() + 1) / 2 * std::size(sizes))];
    };
    for (int i = 0; i < 150; ++i)
      for (const Layout& layout : kLayouts)
        try_product(*backend, one(), one(), one(), layout, DType::f32, DType::f32, i % 2,
                    {.alpha = i % 3 ? 1.0f : 0.37f, .accumulate = i % 5 == 0});
  }
}

TEST("matmul: blocks of every loop") {
  const std::int64_t shapes[][3] = {{1, 700, 1000},  {4, 300, 1100},  {28, 128, 512}, {336, 384, 128},
                                    {130, 515, 769}, {257, 96, 1153}, {600, 70, 400}};
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    for (const auto& s : shapes)
      for (const Layout& layout : kLayouts) {
        try_product(*backend, s[0], s[1], s[2], layout, DType::f32, DType::f32, true, {});
        try_product(*backend, s[0], s[1], s[2], layout, DType::f32, DType::f32, true,
                    {.alpha = -0.5f, .accumulate = true});
      }
  }
}

TEST("matmul: stored weights are widened as they are read") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    for (DType type : {DType::bf16, DType::f16})
      for (const Layout& layout : kLayouts)
        for (std::int64_t size : {7, 40, 150}) {
          try_product(*backend, size, 2 * size + 1, 3 * size + 2, layout, DType::f32, type, true, {});
          try_product(*backend, size, 2 * size + 1, 3 * size + 2, layout, type, DType::f32, false, {});
          try_product(*backend, size, 2 * size + 1, 3 * size + 2, layout, type, type, false, {});
        }
  }
}

TEST("matmul: f16 specials survive the widening") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    const std::vector<float> values = {6.1e-5f, 5.96e-8f, 65504.0f, -0.0f, 1.0f, -3e-6f, 0.333f, INFINITY};
    const Tensor weight = upload(*backend, {1, 8}, values, DType::f16),
                 one = upload(*backend, {1, 1}, {1.0f});
    const Tensor out = backend->empty({1, 8});
    backend->matmul(out, one, weight, {}, {});
    for (std::int64_t j = 0; j < 8; ++j) CHECK_EQ(element(out, {0, j}), element(weight, {0, j}));
  }
}

TEST("matmul: strided views on all sides") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    const Tensor a = random_tensor(*backend, {40, 3, 50}, 1).narrow(1, 1, 1).view({40, 50}).narrow(1, 3, 33);
    const Tensor b = random_tensor(*backend, {60, 2, 45}, 2)
                         .permute({2, 1, 0})
                         .narrow(1, 1, 1)
                         .narrow(0, 5, 33)
                         .view({33, 60});
    const Tensor whole = random_tensor(*backend, {60, 2, 40}, 3);
    const Tensor out = whole.narrow(1, 1, 1).view({60, 40}).transpose(0, 1);
    const std::vector<float> before = values_of(*backend, whole);
    backend->matmul(out, a, b, {}, {});
    check_product(out, {}, a, b, {}, {}, isa + " views");
    // what lies between the rows of out was not touched
    const std::vector<float> after = values_of(*backend, whole);
    for (std::size_t i = 0; i < after.size(); ++i)
      if (i / 40 % 2 == 0) CHECK(after[i] == before[i]);
  }
}

TEST("matmul: out with no unit stride, with accumulate and bias") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    const Tensor a = random_tensor(*backend, {37, 450}, 1), b = random_tensor(*backend, {450, 70}, 2);
    const Tensor bias = random_tensor(*backend, {70}, 4);
    const Tensor out = random_tensor(*backend, {37, 70, 3}, 3).narrow(2, 1, 1).view({37, 70});
    std::vector<float> before;
    for (std::int64_t i = 0; i < 37; ++i)
      for (std::int64_t j = 0; j < 70; ++j) before.push_back(static_cast<float>(element(out, {i, j})));
    backend->matmul(out, a, b, bias, {.alpha = 2, .accumulate = true});
    check_product(out, before, a, b, bias, {.alpha = 2, .accumulate = true}, isa + " scattered");
  }
}

TEST("matmul: two batch axes, broadcast by zero strides") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    const Tensor a = random_tensor(*backend, {3, 1, 9, 20}, 1).expand({3, 4, 9, 20});
    const Tensor b = random_tensor(*backend, {4, 20, 21}, 2);
    const Tensor b_wide = b.view({1, 4, 20, 21}).expand({3, 4, 20, 21});
    const Tensor out = backend->empty({3, 4, 9, 21}), bias = random_tensor(*backend, {21}, 3);
    backend->matmul(out, a, b_wide, bias, {});
    for (std::int64_t i = 0; i < 3; ++i)
      for (std::int64_t j = 0; j < 4; ++j) {
        const auto part = [&](const Tensor& t) {
          return t.narrow(0, i, 1).narrow(1, j, 1).view({t.dim(2), t.dim(3)});
        };
        check_product(part(out), {}, part(a), part(b_wide), bias, {}, isa + " batch");
      }
    // b shared by all, a of one batch axis
    const Tensor x = random_tensor(*backend, {5, 11, 20}, 4), w = b.narrow(0, 1, 1).view({20, 21}),
                 y = backend->empty({5, 11, 21});
    backend->matmul(y, x, w.view({1, 20, 21}).expand({5, 20, 21}), {}, {});
    for (std::int64_t i = 0; i < 5; ++i)
      check_product(y.narrow(0, i, 1).view({11, 21}), {}, x.narrow(0, i, 1).view({11, 20}), w, {}, {},
                    isa + " shared");
  }
}

TEST("matmul: the same bits for every thread count") {
  for (const std::string& isa : isas())
    for (const Layout& layout : kLayouts) {
      std::vector<float> first;
      for (int threads : {1, 2, 3, 4}) {
        const auto backend = cpu_backend(isa, threads);
        const Tensor a = matrix(*backend, 333, 700, layout.a_turned, 1),
                     b = matrix(*backend, 700, 290, layout.b_turned, 2, DType::bf16);
        const Tensor out = backend->empty({333, 290});
        backend->matmul(out, a, b, {}, {});
        const std::vector<float> values = values_of(*backend, out);
        if (threads == 1) first = values;
        CHECK(same_bits(values, first));
      }
    }
}

TEST("matmul: a row's bits depend on that row alone") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    for (const Layout& layout : kLayouts)
      for (DType type : {DType::f32, DType::bf16})
        for (std::int64_t n : {20, 512, 777}) {
          const std::int64_t m = 50, k = 600;
          const Tensor a = matrix(*backend, m, k, layout.a_turned, 1),
                       b = matrix(*backend, k, n, layout.b_turned, 2, type);
          const Tensor bias = random_tensor(*backend, {n}, 3), all = backend->empty({m, n});
          backend->matmul(all, a, b, bias, {});
          for (std::int64_t rows : {1, 2, 4, 13, 25})
            for (std::int64_t start : {0, 1, 7, 25}) {
              const Tensor part = backend->empty({rows, n});
              backend->matmul(part, a.narrow(0, start, rows), b, bias, {});
              CHECK(same_bits(part.data<float>(), all.data<float>() + start * n, rows * n));
            }
          // 20 times as many rows: another cut, other tiles
          const Tensor many = backend->empty({20, m, n});
          backend->matmul(many, a.view({1, m, k}).expand({20, m, k}), b.view({1, k, n}).expand({20, k, n}),
                          bias, {});
          for (std::int64_t copy = 0; copy < 20; ++copy)
            CHECK(same_bits(many.data<float>() + copy * m * n, all.data<float>(), m * n));
        }
  }
}

TEST("matmul: kernel sets with FMA agree to the bit") {
  std::vector<float> first;
  for (const std::string& isa : isas()) {
    if (isa == "portable") continue;
    const auto backend = cpu_backend(isa);
    const Tensor out = backend->empty({45, 130});
    backend->matmul(out, random_tensor(*backend, {45, 900}, 1),
                    random_tensor(*backend, {130, 900}, 2).transpose(0, 1), {}, {});
    const std::vector<float> values = values_of(*backend, out);
    if (first.empty()) first = values;
    CHECK(same_bits(values, first));
  }
}

TEST("matmul: a NaN stays in its row and column") {
  const auto backend = cpu_backend();
  std::vector<float> values = Numbers(1).take(30 * 40);
  values[5 * 40 + 7] = NAN;
  const Tensor a = upload(*backend, {30, 40}, values), b = random_tensor(*backend, {40, 50}, 2),
               out = backend->empty({30, 50});
  backend->matmul(out, a, b, {}, {});
  for (std::int64_t i = 0; i < 30; ++i)
    for (std::int64_t j = 0; j < 50; ++j) CHECK_EQ(std::isnan(element(out, {i, j})), i == 5);
}

TEST("linear_activation: pre and out as the two steps give them") {
  for (const std::string& isa : isas()) {
    const auto backend = cpu_backend(isa);
    backend->strict_shortcuts = true;
    for (std::int64_t tokens : {1, 30, 200}) {
      const Tensor x = random_tensor(*backend, {2, tokens, 72}, 1),
                   weight = random_tensor(*backend, {300, 72}, 2, DType::bf16);
      const Tensor bias = random_tensor(*backend, {300}, 3);
      const Tensor linear = backend->empty({2 * tokens, 300});
      backend->matmul(linear, x.view({2 * tokens, 72}), weight.transpose(0, 1), bias, {});
      for (UnaryOp op : {UnaryOp::silu, UnaryOp::gelu_tanh, UnaryOp::gelu_erf, UnaryOp::quick_gelu}) {
        const Tensor wanted = backend->empty({2 * tokens, 300}), out = backend->empty({2, tokens, 300}),
                     pre = backend->empty({2, tokens, 300});
        backend->unary(op, wanted, linear, 1, 0);
        CHECK(backend->taken("linear_activation", backend->linear_activation(op, out, pre, x, weight, bias)));
        CHECK(same_bits(values_of(*backend, pre), values_of(*backend, linear)));
        CHECK(same_bits(values_of(*backend, out), values_of(*backend, wanted)));
        backend->fill(out, 0);
        CHECK(backend->taken("linear_activation", backend->linear_activation(op, out, {}, x, weight, bias)));
        CHECK(same_bits(values_of(*backend, out), values_of(*backend, wanted)));
      }
    }
  }
}

TEST("thread pool: every task once, in every size of run") {
  for (int threads : {1, 2, 3, 4}) {
    cpu::ThreadPool pool(threads);
    CHECK_EQ(pool.threads(), threads);
    std::vector<int> count(1000);
    for (int turn = 0; turn < 300; ++turn) {
      const std::int64_t tasks = turn % 7 == 0 ? 1000 : turn % 11;
      std::fill(count.begin(), count.end(), 0);
      std::atomic<bool> sane{true};
      pool.run(tasks, [&](std::int64_t task, int worker) {
        ++count[static_cast<std::size_t>(task)];
        if (worker < 0 || worker >= threads) sane = false;
      });
      CHECK(sane);
      for (std::int64_t task = 0; task < 1000; ++task)
        CHECK_EQ(count[static_cast<std::size_t>(task)], task < tasks ? 1 : 0);
      if (turn % 50 == 0)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));  // let the workers fall asleep
    }
  }
}

TEST("thread pool: what the tasks wrote is seen after run") {
  cpu::ThreadPool pool(3);
  std::int64_t sum = 0;
  std::vector<std::int64_t> parts(64);
  for (int turn = 0; turn < 2000; ++turn) {
    pool.run(64, [&](std::int64_t task, int) { parts[static_cast<std::size_t>(task)] += task; });
    for (std::int64_t part : parts) sum += part;
  }
  CHECK_EQ(sum, std::int64_t{2016} * 2000 * 2001 / 2);
}

TEST("kernel sets: a wrong name tells what there is") {
  CHECK_THROWS("ERR_DEVICE", cpu::select_isa("sse9"));
  CHECK_EQ(std::string(cpu::select_isa("").name), std::string(cpu::available_isas().front().name));
}

}  // namespace danceflux::test
