// Shapes, tensor views and dtype conversions: what they compute and what their errors say.
#include "core/shape.h"

#include "core/tensor.h"
#include "cpu_device.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

/// The message of the Error that body() throws.
template <class Body>
std::string message_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.code + ": " + error.what();
  }
  return "nothing was thrown";
}

/// A [..] tensor on a device, holding 0, 1, 2, ... in row-major order.
Tensor counting(Backend& device, const Shape& shape) {
  float next = 0;
  return input(device, shape, Layout::dense, [&] { return next++; });
}
// By value: a check keeps a reference, and these would be references into a tensor that is gone by then.
Shape shape_of(const Tensor& x) { return x.shape(); }
Shape strides_of(const Tensor& x) { return x.strides(); }
std::vector<double> from(double first, double step, int count) {
  std::vector<double> values;
  for (int i = 0; i < count; ++i) values.push_back(first + step * i);
  return values;
}

}  // namespace

TEST("shape: numel, axes from the end, text") {
  const Shape shape{2, 3, 4};
  CHECK_EQ(shape.numel(), 24);
  CHECK_EQ(shape[-1], 4);
  CHECK_EQ(shape.string(), std::string("[2, 3, 4]"));
  CHECK_EQ(Shape{}.numel(), 1);
  CHECK_EQ(Shape{}.string(), std::string("[]"));
  CHECK_EQ((Shape{5, 0, 7}.numel()), 0);
  CHECK_EQ(contiguous_strides(shape), (Shape{12, 4, 1}));
  CHECK_EQ(contiguous_strides(Shape{2, 0, 3}), (Shape{3, 3, 1}));
  CHECK(!(shape == Shape{2, 3}));
}

TEST("shape: errors say what was expected and got") {
  const Shape shape{2, 3};
  CHECK_EQ(message_of([&] { (void)shape[2]; }), "ERR_SHAPE: shape: expected an axis within [2, 3], got 2");
  CHECK_EQ(message_of([&] { (void)shape[-3]; }), "ERR_SHAPE: shape: expected an axis within [2, 3], got -3");
  CHECK_EQ(message_of([] {
             (void)Shape{2, -1}.numel();
           }),
           "ERR_SHAPE: shape: expected dimensions of 0 or more, got [2, -1]");
  CHECK_THROWS("ERR_SHAPE", (Shape{std::int64_t{1} << 40, std::int64_t{1} << 40}.numel()));
  CHECK_THROWS("ERR_SHAPE", (Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}));
}

TEST("shape: broadcasting follows NumPy") {
  CHECK_EQ(broadcast_shapes("add", {2, 3}, {3}), (Shape{2, 3}));
  CHECK_EQ(broadcast_shapes("add", {4, 1, 3}, {5, 1}), (Shape{4, 5, 3}));
  CHECK_EQ(broadcast_shapes("add", {}, {2}), (Shape{2}));
  CHECK_EQ(broadcast_shapes("add", {0}, {1}), (Shape{0}));
  CHECK_EQ(message_of([] {
             broadcast_shapes("mul", {2, 3}, {2});
           }),
           "ERR_SHAPE: mul: expected shapes that broadcast, got [2, 3] and [2]");
}

TEST("tensor: view keeps the order of elements") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {2, 3, 4});
  CHECK_EQ(shape_of(x.view({6, 4})), (Shape{6, 4}));
  CHECK_EQ(shape_of(x.view({-1, 2})), (Shape{12, 2}));
  CHECK(values_of(x.view({4, 1, 6})) == values_of(x));
  CHECK(x.view({24}).address() == x.address());
  CHECK(x.view({24}).id() != x.id());
  CHECK_EQ(counting(*device, {1}).view({}).rank(), 0);
  CHECK_EQ(shape_of(device->empty({0, 3}).view({3, 0})), (Shape{3, 0}));
}

TEST("tensor: view of strided tensors where the strides allow it") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {4, 6});
  const Tensor columns = x.narrow(1, 0, 4);  // rows 6 apart
  CHECK_EQ(strides_of(columns.view({2, 2, 2, 2})), (Shape{12, 6, 2, 1}));
  CHECK(values_of(columns.view({2, 2, 2, 2})) == values_of(columns));
  CHECK(!columns.can_view({16}));
  CHECK(!x.transpose(0, 1).can_view({24}));
  CHECK(x.transpose(0, 1).can_view({2, 3, 4}));
  CHECK(values_of(x.transpose(0, 1).view({2, 3, 4})) == values_of(x.transpose(0, 1)));
  const Tensor repeated = counting(*device, {1, 6}).expand({4, 6});
  CHECK(!repeated.can_view({24}));
  CHECK_EQ(strides_of(repeated.view({4, 2, 3})), (Shape{0, 3, 1}));
}

TEST("tensor: errors of view") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {2, 6});
  CHECK_EQ(message_of([&] { (void)x.view({5}); }),
           "ERR_SHAPE: view: expected 12 elements of [2, 6], got [5]");
  CHECK_EQ(message_of([&] {
             (void)x.view({-1, -1});
           }),
           "ERR_SHAPE: view: expected at most one -1, got [-1, -1]");
  CHECK_EQ(message_of([&] {
             (void)x.view({-1, 5});
           }),
           "ERR_SHAPE: view: expected 12 elements of [2, 6], got [-1, 5]");
  CHECK_EQ(message_of([&] { (void)x.transpose(0, 1).view({12}); }),
           "ERR_SHAPE: view: the strides [1, 6] of [6, 2] do not allow [12] without a copy");
}

TEST("tensor: permute and transpose move axes") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {2, 3, 4});
  const Tensor y = x.permute({2, 0, 1});
  CHECK_EQ(shape_of(y), (Shape{4, 2, 3}));
  CHECK_EQ(strides_of(y), (Shape{1, 12, 4}));
  CHECK(!y.is_contiguous());
  CHECK_EQ(strides_of(x.permute({-1, 0, 1})), strides_of(y));
  CHECK_EQ(shape_of(x.transpose(0, -1)), (Shape{4, 3, 2}));
  CHECK_EQ(message_of([&] { (void)x.permute({0, 1}); }), "ERR_SHAPE: permute: expected 3 axes, got [0, 1]");
  CHECK_EQ(message_of([&] { (void)x.permute({0, 1, 1}); }), "ERR_SHAPE: permute: axis 1 twice in [0, 1, 1]");
  CHECK_THROWS("ERR_SHAPE", x.permute({0, 1, 3}));
}

TEST("tensor: narrow keeps the axis and checks its range") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {3, 4});
  CHECK(values_of(x.narrow(0, 1, 2)) == from(4, 1, 8));
  CHECK(values_of(x.narrow(-1, 2, 1)) == from(2, 4, 3));
  CHECK_EQ(x.narrow(1, 4, 0).numel(), 0);
  CHECK_EQ(message_of([&] { (void)x.narrow(1, 3, 2); }),
           "ERR_SHAPE: narrow: expected a range within axis 1 of [3, 4], got 3 + 2");
  CHECK_THROWS("ERR_SHAPE", x.narrow(1, -1, 2));
  CHECK_THROWS("ERR_SHAPE", x.narrow(1, 1, -1));
  CHECK_THROWS("ERR_SHAPE", x.narrow(1, 1, std::int64_t{1} << 62));
}

TEST("tensor: expand repeats by zero strides") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {3, 1});
  CHECK_EQ(strides_of(x.expand({2, 3, 4})), (Shape{0, 1, 0}));
  CHECK((values_of(x.expand({3, 2})) == std::vector<double>{0, 0, 1, 1, 2, 2}));
  CHECK_EQ(message_of([&] {
             (void)x.expand({2, 4});
           }),
           "ERR_SHAPE: expand: expected a shape that [3, 1] broadcasts to, got [2, 4]");
  CHECK_EQ(message_of([&] { (void)x.expand({3}); }), "ERR_SHAPE: expand: expected at least rank 2, got [3]");
}

TEST("tensor: handles share memory, and the last one frees it") {
  const auto device = open_device("", 1);
  {
    const Tensor x = counting(*device, {4});
    const Tensor copy = x, view = x.narrow(0, 1, 2), cut = x.detach();
    CHECK_EQ(copy.id(), x.id());
    CHECK(view.id() != x.id() && cut.id() != x.id());
    *x.narrow(0, 1, 1).data<float>() = 9;
    CHECK_EQ(*view.data<float>(), 9.0f);
    CHECK(cut.address() == x.address());
  }
  CHECK_EQ(device->memory().used, 0u);
  CHECK(!Tensor().defined());
  CHECK(Tensor().address() == nullptr);
}

TEST("tensor: is_contiguous ignores axes of one element") {
  const auto device = open_device("", 1);
  const Tensor x = counting(*device, {3, 4});
  CHECK(x.is_contiguous());
  CHECK(x.narrow(0, 1, 2).is_contiguous());
  CHECK(!x.narrow(1, 1, 2).is_contiguous());
  CHECK(x.narrow(0, 1, 1).transpose(0, 1).is_contiguous());
  CHECK(x.narrow(1, 2, 0).is_contiguous());
  CHECK(!x.narrow(0, 0, 1).expand({2, 4}).is_contiguous());
}

TEST("dtype: names, sizes and refusals") {
  CHECK(dtype_from_name("bf16") == DType::bf16);
  CHECK(dtype_from_name("BF16") == DType::bf16);
  CHECK_EQ(std::string(name_of(DType::f16)), std::string("f16"));
  CHECK_EQ(size_of(DType::f64), 8u);
  CHECK(is_float(DType::f64) && !is_float(DType::i32));
  CHECK_EQ(message_of([] { dtype_from_name("int4"); }),
           "ERR_DTYPE: dtype: expected one of f32, bf16, f16, f64, i32, i64, u8, got \"int4\"");
  std::int32_t number = 1;
  float value = 0;
  CHECK_EQ(message_of([&] { convert_elements(&value, DType::f32, &number, DType::i32, 1); }),
           "ERR_DTYPE: convert: expected two float types, got i32 to f32");
}

TEST("dtype: rounding to 16 bits, ties to even") {
  struct Rounding {
    float value;
    std::uint16_t bf16, f16;
  };
  const Rounding cases[] = {
      {1.0f, 0x3f80, 0x3c00},
      {1.0f + 0x1p-8f, 0x3f80, 0x3c04},
      {1.0f + 0x1.8p-7f, 0x3f82, 0x3c0c},
      {1.0f + 0x1p-11f, 0x3f80, 0x3c00},
      {1.0f + 0x1.8p-10f, 0x3f80, 0x3c02},
      {65519.996f, 0x4780, 0x7bff},
      {65520.0f, 0x4780, 0x7c00},
      {0x1p-25f, 0x3300, 0x0000},
      {0x1.000002p-25f, 0x3300, 0x0001},
      {-0x1.8p-24f, 0xb3c0, 0x8002},
      {3.4e38f, 0x7f80, 0x7c00},
      {0x1p-149f, 0x0000, 0x0000},
      {-0.0f, 0x8000, 0x8000},
  };
  for (const Rounding& test : cases) {
    CHECK_EQ(f32_to_bf16(test.value), test.bf16);
    CHECK_EQ(f32_to_f16(test.value), test.f16);
  }
}
