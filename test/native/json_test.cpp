// The JSON reader: what it takes, what it refuses, and what messages make of text from outside.
#include "core/json.h"

#include <cmath>
#include <limits>

#include "backend/options.h"
#include "harness.h"
#include "temporary.h"

namespace danceflux::test {
namespace {

using Kind = Json::Kind;

Json parse(std::string_view text) { return Json::parse(text, "ERR_TEST", "here"); }

struct Good {
  std::string_view text;
  Kind kind;
  std::string_view value;  // of strings, and of numbers as written
};
const Good kGood[] = {
    {"null", Kind::null, ""},
    {"true", Kind::boolean, ""},
    {" \t\r\n false \n", Kind::boolean, ""},
    {"0", Kind::number, "0"},
    {"-0", Kind::number, "-0"},
    {"-12.50e+07", Kind::number, "-12.50e+07"},
    {"1E5", Kind::number, "1E5"},
    {"123456789012345678901234567890", Kind::number, "123456789012345678901234567890"},
    {"\"\"", Kind::string, ""},
    {R"("a/b\/c")", Kind::string, "a/b/c"},
    {R"("\"\\\/\b\f\n\r\t")", Kind::string, "\"\\/\b\f\n\r\t"},
    {R"("\u0041\u00e9\u4e2d\uD83D\uDE00")", Kind::string, "A\xc3\xa9\xe4\xb8\xad\xf0\x9f\x98\x80"},
    {"\"\xf0\x9f\x98\x80\x7f\"", Kind::string, "\xf0\x9f\x98\x80\x7f"},
    {R"("\u0000x")", Kind::string, std::string_view("\0x", 2)},
    {R"("\uffff\ud7ff\ue000")", Kind::string, "\xef\xbf\xbf\xed\x9f\xbf\xee\x80\x80"},
    {"[]", Kind::array, ""},
    {" [ 1 , [ ] , { } ] ", Kind::array, ""},
    {"{}", Kind::object, ""}};

struct Bad {
  std::string_view text;
  std::string_view told;
};
const Bad kBad[] = {{"", "expected a value at byte 0, got the end"},
                    {"   ", "at byte 3, got the end"},
                    {"nul", "expected a value at byte 0"},
                    {"nullx", "expected nothing more at byte 4"},
                    {"True", "expected a value at byte 0"},
                    {"NaN", "expected a value at byte 0"},
                    {"Infinity", "expected a value"},
                    {"-", "expected a value at byte 1"},
                    {"+1", "expected a value at byte 0"},
                    {"01", "expected nothing more at byte 1"},
                    {"-01", "expected nothing more at byte 2"},
                    {".5", "expected a value at byte 0"},
                    {"1.", "expected a value at byte 2"},
                    {"1.e5", "expected a value at byte 2"},
                    {"1e", "expected a value at byte 2"},
                    {"1e+", "expected a value at byte 3"},
                    {"0x10", "expected nothing more at byte 1"},
                    {"1 2", "expected nothing more at byte 2"},
                    {"[1,]", "expected a value at byte 3"},
                    {"[,1]", "expected a value at byte 1"},
                    {"[1 2]", "expected ',' or ']' at byte 3"},
                    {"[1", "expected ',' or ']' at byte 2, got the end"},
                    {"]", "expected a value at byte 0"},
                    {"{", "expected a string at byte 1, got the end"},
                    {"{1:2}", "expected a string at byte 1"},
                    {"{a:2}", "expected a string at byte 1"},
                    {R"({"a"})", "expected ':' at byte 4"},
                    {R"({"a":})", "expected a value at byte 5"},
                    {R"({"a":1,})", "expected a string at byte 7"},
                    {R"({"a":1 "b":2})", "expected ',' or '}' at byte 7"},
                    {R"({"a":1,"a":2})", "expected each name once, got a again"},
                    {R"({"":1,"":2})", "expected each name once, got \"\" again"},
                    {R"("abc)", "expected '\"' at byte 4, got the end"},
                    {"\"a\nb\"", "expected no control characters in a string at byte 2"},
                    {std::string_view("\"a\0b\"", 5), "expected no control characters in a string at byte 2"},
                    {std::string_view("\0", 1), "expected a value at byte 0"},
                    {R"("\x41")", "expected an escape sequence at byte 2"},
                    {R"("\)", "expected an escape sequence at byte 2, got the end"},
                    {std::string_view("\"\\\0\"", 4), "expected an escape sequence at byte 2"},
                    {R"("\u12")", "expected four hexadecimal digits"},
                    {R"("\u12g4")", "expected four hexadecimal digits"},
                    {R"("\u+123")", "expected four hexadecimal digits"},
                    {R"("\u-123")", "expected four hexadecimal digits"},
                    {R"("\u)", "expected four hexadecimal digits"},
                    {R"("\ud83d")", "expected a pair of surrogates"},
                    {R"("\ud83dx")", "expected a pair of surrogates"},
                    {R"("\ud83d\n")", "expected a pair of surrogates"},
                    {R"("\ud83d\u0041")", "expected a pair of surrogates"},
                    {R"("\ude00\ud83d")", "expected a pair of surrogates"},
                    {R"("\ud83d\u)", "expected four hexadecimal digits"},
                    {"// x\n1", "expected a value at byte 0"},
                    {"\xef\xbb\xbf{}", "expected a value at byte 0"},
                    {"'a'", "expected a value at byte 0"}};

// By table 3-7 of the Unicode standard: each row is one way to be wrong.
const std::string_view kNoUtf8[] = {"\x80",
                                    "\xbf",
                                    "\xc0\x80",
                                    "\xc1\xbf",
                                    "\xc3",
                                    "\xc3(",
                                    "\xe0\x9f\xbf",
                                    "\xe4\xb8",
                                    "\xe4\xb8(",
                                    "\xed\xa0\x80",
                                    "\xed\xbf\xbf",
                                    "\xf0\x8f\xbf\xbf",
                                    "\xf0\x9f\x98",
                                    "\xf4\x90\x80\x80",
                                    "\xf5\x80\x80\x80",
                                    "\xfe",
                                    "\xff"};

TEST("json: what is taken") {
  for (const Good& good : kGood) {
    const Json value = parse(good.text);
    CHECK(value.is(good.kind));
    CHECK_EQ(value.text(), good.value);
  }
  CHECK(parse("true").boolean() && !parse("false").boolean());
}

TEST("json: what is refused, and where") {
  for (const Bad& bad : kBad) {
    const Error error = error_of([&] { parse(bad.text); });
    CHECK_EQ(error.code, std::string("ERR_TEST"));
    check_told(error, "here: ");
    check_told(error, bad.told);
  }
}

TEST("json: text that is no UTF-8 is refused anywhere") {
  for (const std::string_view bytes : kNoUtf8) {
    CHECK(!is_utf8(bytes));
    CHECK(!is_utf8("abc" + std::string(bytes) + "d"));
    check_told(error_of([&] { parse("\"" + std::string(bytes) + "\""); }), "expected UTF-8 at byte 1");
    check_told(error_of([&] { parse("1" + std::string(bytes)); }), "expected UTF-8 at byte 1");
  }
  CHECK(is_utf8("") &&
        is_utf8("\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xed\x9f\xbf\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"));
}

TEST("json: members keep their order, and are found") {
  const Json value = parse(R"({"b":1,"a":{"c":[true,null,"x"]},"":3})");
  CHECK_EQ(value.members().size(), std::size_t{3});
  CHECK_EQ(value.members()[0].first, std::string("b"));
  CHECK_EQ(value.find("a")->find("c")->items()[2].text(), std::string("x"));
  CHECK_EQ(value.find("")->number(), 3.0);
  CHECK(value.find("c") == nullptr && parse("3").find("a") == nullptr && parse("[]").find("") == nullptr);
}

TEST("json: numbers") {
  struct Row {
    const char* text;
    double number;
    bool whole;
    std::int64_t integer = 0;
  };
  constexpr auto kLeast = std::numeric_limits<std::int64_t>::min(),
                 kMost = std::numeric_limits<std::int64_t>::max();
  const double infinite = std::numeric_limits<double>::infinity();
  for (const Row& row : {Row{"0", 0, true, 0},
                         {"-0", 0, true, 0},
                         {"-7", -7, true, -7},
                         {"1.0", 1, false},
                         {"1e2", 100, false},
                         {"0.1", 0.1, false},
                         {"9007199254740993", 9007199254740992, true, 9007199254740993},
                         {"9223372036854775807", 0x1p63, true, kMost},
                         {"-9223372036854775808", -0x1p63, true, kLeast},
                         {"9223372036854775808", 0x1p63, false},
                         {"-9223372036854775809", -0x1p63, false},
                         {"1e999", infinite, false},
                         {"-1e999", -infinite, false},
                         {"1e-999", 0, false},
                         {"4.9406564584124654e-324", 0x1p-1074, false},
                         {"1.7976931348623157e308", 0x1.fffffffffffffp1023, false}}) {
    const Json value = parse(row.text);
    CHECK_EQ(value.number(), row.number);
    std::int64_t integer = 77;
    CHECK_EQ(value.integer(integer), row.whole);
    if (row.whole) CHECK_EQ(integer, row.integer);
  }
  std::int64_t integer = 0;
  CHECK(!parse("\"5\"").integer(integer) && !parse("true").integer(integer));
  CHECK_EQ(parse("\"5\"").number(), 0.0);
}

TEST("json: depth and count are bounded") {
  const auto nested = [](std::size_t depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  CHECK(parse(nested(33)).is(Kind::array));
  check_told(error_of([&] { parse(nested(34)); }), "expected at most 32 nested values at byte 33");
  check_told(error_of([&] { parse(std::string(1'000'000, '[')); }), "expected at most 32 nested values");
  std::string objects;
  for (int i = 0; i < 100; ++i) objects += "{\"a\":";
  check_told(error_of([&] { parse(objects); }), "expected at most 32 nested values");
  std::string many = "[[]";
  for (int i = 0; i < (1 << 22); ++i) many += ",[]";
  check_told(error_of([&] { parse(many + "]"); }), "expected at most 4194304 values");
}

TEST("json: every beginning of a text is refused, and nothing is read past it") {
  const std::string text = R"({"a":[1.5e-3,"\u00e9\ud83d\ude00\n",true,null],"b":{"c":false}})";
  CHECK_EQ(parse(text).members().size(), std::size_t{2});
  for (std::size_t bytes = 0; bytes < text.size(); ++bytes) {
    const std::vector<char> exact(text.begin(),
                                  text.begin() + static_cast<std::ptrdiff_t>(bytes));  // no byte behind it
    CHECK_THROWS("ERR_TEST", parse({exact.data(), exact.size()}));
  }
}

TEST("json: what is quoted is read again") {
  std::string all;
  for (int i = 0; i < 128; ++i) all += static_cast<char>(i);
  for (const std::string& text : {all, std::string("\xc3\xa9 \xf0\x9f\x98\x80"), std::string()}) {
    CHECK_EQ(parse(json_quote(text)).text(), text);
  }
  CHECK_EQ(json_quote("a\"\\\n"), std::string(R"("a\"\\\u000a")"));
}

TEST("json: text from outside is shown on one line") {
  CHECK_EQ(shown("proj.weight"), std::string("proj.weight"));
  CHECK_EQ(shown(""), std::string("\"\""));
  CHECK_EQ(shown("two words"), std::string("\"two words\""));
  CHECK_EQ(shown("\x1b[31m\n\x7f"), std::string(R"(\x1b[31m\x0a\x7f)"));
  CHECK_EQ(shown("\xc3\xa9\xff"), std::string("\xc3\xa9\\xff"));
  CHECK_EQ(shown(std::string(101, 'x')), std::string(100, 'x') + "...");
  CHECK_EQ(shown(std::string(100, 'x')), std::string(100, 'x'));
  CHECK(is_utf8(shown(std::string(99, 'x') + "\xf0\x9f\x98\x80...")));
}

TEST("device options: nested objects are dotted names") {
  const auto options = DeviceOptions::parse(
      R"({"threads":2,"deterministic":true,"isa":"avx2","hccl":{"bufferSizeMiB":800,"none":null}})");
  CHECK_EQ(options.integer("threads", 1), std::int64_t{2});
  CHECK(options.flag("deterministic", false));
  CHECK_EQ(options.text("isa", ""), std::string("avx2"));
  CHECK_EQ(options.number("hccl.bufferSizeMiB", 0), 800.0);
  CHECK_EQ(options.integer("hccl.none", 5), std::int64_t{5});
  CHECK_EQ(options.text("absent", "default"), std::string("default"));
  options.allow_only("ascend", {"threads", "deterministic", "isa", "hccl.bufferSizeMiB"});
  const Error unknown = error_of([&] { options.allow_only("cpu", {"threads", "isa", "deterministic"}); });
  CHECK_EQ(unknown.code, std::string("ERR_OPTION"));
  check_told(unknown, "cpu options: expected one of threads, isa, deterministic, got hccl.bufferSizeMiB");
  check_told(error_of([&] { options.allow_only("bare", {}); }),
             "bare options: expected none, got deterministic");
}

TEST("device options: what is refused") {
  const std::pair<const char*, const char*> refused[] = {
      {"", "device options: expected a value"},
      {"[]", "expected an object"},
      {"5", "expected an object"},
      {"null", "expected an object"},
      {R"({"a":[1]})", "option a: expected no list"},
      {R"({"a":{"b":[]}})", "option a.b: expected no list"},
      {R"({"a":{"b":1},"a.b":2})", "option a.b: expected it once"},
      {R"({"a":1e999})", "option a: expected a finite number, got 1e999"},
      {R"({"a":1}x)", "expected nothing more"}};
  for (const auto& [text, told] : refused) {
    const Error error = error_of([text = text] { DeviceOptions::parse(text); });
    CHECK_EQ(error.code, std::string("ERR_OPTION"));
    check_told(error, told);
  }
  const auto options = DeviceOptions::parse(R"({"n":2.5,"big":1e300,"s":"x","b":true})");
  CHECK_THROWS("ERR_OPTION", options.integer("n", 0));
  CHECK_THROWS("ERR_OPTION", options.integer("big", 0));
  CHECK_THROWS("ERR_OPTION", options.integer("s", 0));
  CHECK_THROWS("ERR_OPTION", options.flag("n", false));
  CHECK_THROWS("ERR_OPTION", options.text("b", ""));
  CHECK_THROWS("ERR_OPTION", options.number("s", 0));
}

}  // namespace
}  // namespace danceflux::test
