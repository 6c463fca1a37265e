// copy, fill, gather and scatter of the CPU backend: exact in every type and layout.
#include <algorithm>

#include "cpu_device.h"

using namespace danceflux;
using namespace danceflux::test;

namespace {

constexpr DType kFloats[] = {DType::f32, DType::bf16, DType::f16, DType::f64};

bool is_nan16(std::uint16_t bits, DType dtype) {
  const std::uint16_t infinity = dtype == DType::bf16 ? 0x7f80 : 0x7c00;
  return (bits & 0x7fff) > infinity;
}

/// All 65536 patterns of a 16-bit type.
Tensor all_patterns(Backend& device, DType dtype) {
  std::vector<std::uint16_t> bits(65536);
  for (std::size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<std::uint16_t>(i);
  const Tensor x = device.empty({65536}, dtype);
  device.upload(x, bits.data());
  return x;
}

/// Values whose rounding to 16 bits is delicate: every 16-bit pattern, its halfway neighbours and what lies
/// just beside those.
std::vector<float> delicate_values(DType dtype) {
  std::vector<float> values;
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const float exact = dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
    if (std::isnan(exact)) continue;
    const auto next = static_cast<std::uint16_t>(i + 1);
    const float above = dtype == DType::bf16 ? bf16_to_f32(next) : f16_to_f32(next);
    const auto middle = static_cast<float>((static_cast<double>(exact) + static_cast<double>(above)) / 2);
    for (float value : {exact, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
      if (!std::isnan(value)) values.push_back(value);
    }
  }
  return values;
}

/// Bytes of a tensor's elements in row-major order.
std::vector<unsigned char> bytes_of(const Tensor& x) {
  const std::size_t size = size_of(x.dtype());
  std::vector<unsigned char> bytes;
  const auto* base = x.data<unsigned char>();
  for_offsets(x, [&](std::int64_t offset) {
    const unsigned char* at = base + offset * static_cast<std::int64_t>(size);
    bytes.insert(bytes.end(), at, at + size);
  });
  return bytes;
}

void fill_with_floats(const Tensor& x, std::uint64_t seed) {
  Numbers numbers(seed);
  for_offsets(x, [&](std::int64_t offset) {
    const float value = numbers.normal();
    convert_elements(x.data<char>() + offset * static_cast<std::int64_t>(size_of(x.dtype())), x.dtype(),
                     &value, DType::f32, 1);
  });
}

std::vector<unsigned char> converted(const Tensor& x, DType to) {
  const std::vector<unsigned char> from = bytes_of(x);
  std::vector<unsigned char> result(static_cast<std::size_t>(x.numel()) * size_of(to));
  convert_elements(result.data(), to, from.data(), x.dtype(), static_cast<std::size_t>(x.numel()));
  return result;
}

void check_copy(Backend& device, const Shape& shape, DType to, Layout out_layout, DType from,
                Layout x_layout) {
  const Tensor x = place(device, shape, x_layout, from).view;
  fill_with_floats(x, 9);
  const Placed out = place(device, shape, out_layout, to);
  device.copy(out.view, x);
  if (bytes_of(out.view) != converted(x, to))
    fail_at(__FILE__, __LINE__, "copy ", name_of(from), " to ", name_of(to), " of ", shape, " layouts ",
            static_cast<int>(x_layout), " to ", static_cast<int>(out_layout));
  check_margins(out);
}

}  // namespace

TEST("cpu copy: 16-bit floats to f32, every pattern") {
  on_every_isa([](Backend& device) {
    for (DType dtype : {DType::bf16, DType::f16}) {
      const Tensor x = all_patterns(device, dtype), wide = device.empty({65536}),
                   back = device.empty({65536}, dtype);
      device.copy(wide, x);
      device.copy(back, wide);
      for (std::uint32_t i = 0; i < 65536; ++i) {
        const auto bits = static_cast<std::uint16_t>(i);
        const float wanted = dtype == DType::bf16 ? bf16_to_f32(bits) : f16_to_f32(bits),
                    got = wide.data<float>()[i];
        if (is_nan16(bits, dtype)) {
          CHECK(std::isnan(got) && is_nan16(back.data<std::uint16_t>()[i], dtype));
        } else {
          CHECK(std::memcmp(&got, &wanted, 4) == 0);
          CHECK_EQ(back.data<std::uint16_t>()[i], bits);
        }
      }
    }
  });
}

TEST("cpu copy: f32 to 16-bit floats rounds to nearest even") {
  on_every_isa([](Backend& device) {
    for (DType dtype : {DType::bf16, DType::f16}) {
      const std::vector<float> values = delicate_values(dtype);
      const auto n = static_cast<std::int64_t>(values.size());
      const Tensor x = device.empty({n}), y = device.empty({n}, dtype);
      device.upload(x, values.data());
      device.copy(y, x);
      for (std::int64_t i = 0; i < n; ++i) {
        const float value = values[static_cast<std::size_t>(i)];
        CHECK_EQ(y.data<std::uint16_t>()[i], dtype == DType::bf16 ? f32_to_bf16(value) : f32_to_f16(value));
      }
    }
  });
}

TEST("core dtype: f16 and bf16 agree with the definition of the formats") {
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    const double sign = bits & 0x8000 ? -1 : 1;
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float half = f16_to_f32(bits);
    if (exponent == 31) {
      CHECK(mantissa ? std::isnan(half) : half == sign * INFINITY);
    } else {
      CHECK_EQ(static_cast<double>(half),
               sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24)));
      CHECK_EQ(f32_to_f16(half), bits);
    }
    const int wide_exponent = bits >> 7 & 255, wide_mantissa = bits & 127;
    const float brain = bf16_to_f32(bits);
    if (wide_exponent == 255) {
      CHECK(wide_mantissa ? std::isnan(brain) : brain == sign * INFINITY);
    } else {
      CHECK_EQ(static_cast<double>(brain),
               sign * (wide_exponent ? std::ldexp(128 + wide_mantissa, wide_exponent - 134)
                                     : std::ldexp(wide_mantissa, -133)));
      CHECK_EQ(f32_to_bf16(brain), bits);
    }
  }
}

TEST("cpu copy: every pair of float types in every pair of layouts") {
  on_every_isa([](Backend& device) {
    for (DType to : kFloats) {
      for (DType from : kFloats) {
        for (Layout out_layout : kOutputLayouts) {
          for (Layout x_layout : kInputLayouts) {
            for (const Shape& shape :
                 {Shape{}, Shape{0}, Shape{1}, Shape{5}, Shape{3, 7}, Shape{2, 3, 37}, Shape{2, 0, 3}})
              check_copy(device, shape, to, out_layout, from, x_layout);
          }
        }
      }
    }
  });
}

TEST("cpu copy: transposes of every element size, edges of tiles included") {
  on_every_isa([](Backend& device) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f64}) {
      for (const Shape& shape :
           {Shape{4, 4}, Shape{5, 9}, Shape{33, 31}, Shape{32, 64}, Shape{3, 65, 34}, Shape{2, 4, 100}}) {
        check_copy(device, shape, dtype, Layout::dense, dtype, Layout::swapped);
        check_copy(device, shape, dtype, Layout::swapped, dtype, Layout::dense);
        check_copy(device, shape, dtype, Layout::narrowed, dtype, Layout::swapped);
      }
    }
    const Placed out = place(device, {6, 40}, Layout::dense, DType::u8);
    const Tensor x = place(device, {6, 40}, Layout::swapped, DType::u8).view;
    int next = 0;
    for_offsets(x, [&](std::int64_t offset) {
      x.data<unsigned char>()[offset] = static_cast<unsigned char>(next++);
    });
    device.copy(out.view, x);
    CHECK(bytes_of(out.view) == bytes_of(x));
    check_margins(out);
  });
}

TEST("cpu copy: axes in any order, patches packed and unpacked, large enough for threads") {
  on_every_isa([](Backend& device) {
    const Tensor x = normal_input(device, {3, 5, 24, 2, 33, 2}, 4);
    for (const Shape& order : {Shape{0, 2, 4, 1, 3, 5}, Shape{5, 4, 3, 2, 1, 0}, Shape{0, 1, 2, 4, 3, 5},
                               Shape{0, 5, 1, 2, 3, 4}}) {
      const Tensor view = x.permute(order), packed = device.empty(view.shape()),
                   back = device.empty(x.shape());
      device.copy(packed, view);
      CHECK(same_bits(packed, view));
      device.copy(back.permute(order), packed);
      CHECK(same_bits(back, x));
    }
  });
}

TEST("cpu copy: integers keep their bits") {
  on_every_isa([](Backend& device) {
    for (DType dtype : {DType::i32, DType::i64, DType::u8}) {
      for (Layout layout : kInputLayouts) {
        const Tensor x = place(device, {3, 5, 18}, layout, dtype).view;
        Numbers numbers(1);
        for_offsets(x, [&](std::int64_t offset) {
          const std::uint64_t value = numbers.bits() * 4294967311u;
          std::memcpy(x.data<char>() + offset * static_cast<std::int64_t>(size_of(dtype)), &value,
                      size_of(dtype));
        });
        const Placed out = place(device, {3, 5, 18}, Layout::strided, dtype);
        device.copy(out.view, x);
        CHECK(bytes_of(out.view) == bytes_of(x));
        check_margins(out);
      }
    }
  });
}

TEST("cpu fill: every type and layout") {
  on_every_isa([](Backend& device) {
    for (DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i32, DType::i64, DType::u8}) {
      for (Layout layout : kOutputLayouts) {
        for (const Shape& shape : {Shape{}, Shape{0}, Shape{9}, Shape{3, 5, 7}}) {
          const Placed out = place(device, shape, layout, dtype);
          device.fill(out.view, 3);
          const double number = 3;
          std::uint64_t wanted = 3;  // little endian: the leading bytes are any smaller integer's
          if (is_float(dtype)) convert_elements(&wanted, dtype, &number, DType::f64, 1);
          for_offsets(out.view, [&](std::int64_t offset) {
            const auto size = static_cast<std::int64_t>(size_of(dtype));
            CHECK(std::memcmp(out.view.data<char>() + offset * size, &wanted, size_of(dtype)) == 0);
          });
          check_margins(out);
        }
      }
    }
  });
}

TEST("cpu upload and download keep bytes, of strided tensors too") {
  const auto device = open_device("");
  const std::vector<float> numbers{1, 2, 3, 4, 5, 6};
  const Tensor x = device->empty({2, 3});
  device->upload(x, numbers.data());
  std::vector<float> back(6);
  device->download(back.data(), x);
  CHECK(back == numbers);
  device->download(back.data(), x.transpose(0, 1));
  CHECK((back == std::vector<float>{1, 4, 2, 5, 3, 6}));
  device->download(nullptr, device->empty({0}));
}

namespace {
Tensor ids_of(Backend& device, const std::vector<std::int32_t>& ids) {
  const Tensor x = device.empty({static_cast<std::int64_t>(ids.size())}, DType::i32);
  device.upload(x, ids.data());
  return x;
}
}  // namespace

TEST("cpu gather_rows: tables of every float type") {
  on_every_isa([](Backend& device) {
    for (DType dtype : kFloats) {
      for (Layout table_layout : {Layout::dense, Layout::swapped, Layout::narrowed}) {
        for (Layout out_layout : kOutputLayouts) {
          for (std::int64_t width : {1, 5, 16, 131}) {
            const Tensor table = place(device, {11, width}, table_layout, dtype).view;
            fill_with_floats(table, 2);
            const std::vector<std::int32_t> ids{10, 0, 0, 3, 7, 10, 9};
            const Placed out = place(device, {7, width}, out_layout);
            device.gather_rows(out.view, table, ids_of(device, ids));
            for (int i = 0; i < 7; ++i) {
              CHECK(bytes_of(out.view.narrow(0, i, 1)) ==
                    converted(table.narrow(0, ids[static_cast<std::size_t>(i)], 1), DType::f32));
            }
            check_margins(out);
          }
        }
      }
    }
    device.gather_rows(device.empty({0, 4}), device.empty({3, 4}), ids_of(device, {}));
  });
}

TEST("cpu scatter_add_rows: repeated ids add in the order of the rows") {
  on_every_isa([](Backend& device) {
    for (Layout layout : kOutputLayouts) {
      for (std::int64_t width : {1, 17, 700}) {
        std::vector<std::int32_t> ids;
        Numbers numbers(5);
        for (int i = 0; i < 100; ++i) ids.push_back(static_cast<std::int32_t>(numbers.bits() % 7));
        const Tensor rows = normal_input(device, {100, width}, 6, layout);
        const Placed table = place(device, {8, width}, layout);
        for_offsets(table.view, [&](std::int64_t offset) { table.view.data<float>()[offset] = 1; });
        device.scatter_add_rows(table.view, rows, ids_of(device, ids));
        for (std::int64_t j = 0; j < width; ++j) {
          float sums[8];
          std::fill_n(sums, 8, 1.0f);
          for (int i = 0; i < 100; ++i)
            sums[ids[static_cast<std::size_t>(i)]] += *rows.narrow(0, i, 1).narrow(1, j, 1).data<float>();
          for (int i = 0; i < 8; ++i)
            CHECK_EQ(*table.view.narrow(0, i, 1).narrow(1, j, 1).data<float>(), sums[i]);
        }
        check_margins(table);
      }
    }
  });
}

TEST("cpu copy, gather and scatter: the same bits on any number of threads") {
  check_thread_counts([](Backend& device) {
    const Tensor x = normal_input(device, {300, 517}, 1);
    std::vector<std::int32_t> ids;
    for (int i = 0; i < 900; ++i) ids.push_back(i * 7 % 300);
    const std::vector<Tensor> results{device.empty({517, 300}), device.empty({900, 517}),
                                      device.empty({300, 517})};
    device.copy(results[0], x.transpose(0, 1));
    device.gather_rows(results[1], x, ids_of(device, ids));
    device.fill(results[2], 0);
    device.scatter_add_rows(results[2], results[1], ids_of(device, ids));
    return results;
  });
}
