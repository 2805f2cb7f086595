// Pickles written by hand: what is refused, and with which words; the bounds; the values that are
// read.
#include <chrono>

#include "foreign_helpers.hpp"

namespace troupe {
namespace {

using namespace std::string_literals;
using ::testing::AllOf;
using testing::failure_of;
using testing::fixture;
using ::testing::HasSubstr;
using testing::make_torch_file;
using testing::make_zip;
using testing::number;
using testing::refused;
using testing::refused_pickle;
using ::testing::StartsWith;

std::string text(const std::string& value) { return "X" + number(value.size(), 4) + value; }

TEST(ForeignPickle, RefusesEveryNameThatCouldRunCode) {
  for (const auto* const name :
       {"os\nsystem", "posix\nsystem", "subprocess\nPopen", "builtins\neval", "__builtin__\nexec",
        "builtins\n__import__", "builtins\ngetattr", "importlib\nimport_module", "torch\nload",
        "torch.hub\nload", "numpy\nload", "operator\nattrgetter", "functools\npartial",
        "torch._utils\n_rebuild_sparse_tensor", "collections\nnamedtuple", "torch.jit\nload"}) {
    std::string dotted = name;
    dotted[dotted.find('\n')] = '.';
    EXPECT_THAT(
        refused_pickle("\x80\2c"s + name + "\n"s + text("touch /tmp/owned") + "\x85R."),
        AllOf(StartsWith("Unsupported test.bin: "), HasSubstr(dotted), HasSubstr("(byte ")));
    const auto newline = std::string(name).find('\n');
    EXPECT_THAT(refused_pickle("\x80\4"s + text(std::string(name).substr(0, newline)) +
                               text(std::string(name).substr(newline + 1)) + "\x93)R."),
                AllOf(StartsWith("Unsupported"), HasSubstr(dotted)));
  }
}

TEST(ForeignPickle, NamesTheByteInTheFile) {
  const auto file = make_torch_file("\x80\2cos\nsystem\n)R.");
  EXPECT_THAT(refused(file), HasSubstr("(byte " + std::to_string(file.find("cos\nsystem")) + ")"));
}

TEST(ForeignPickle, CallsNothingThatItKnowsEither) {
  EXPECT_THAT(refused_pickle("\x80\2c__builtin__\nlist\n)R."), HasSubstr("calls __builtin__.list"));
  EXPECT_THAT(refused_pickle("\x80\2K\1)R."), HasSubstr("calls what is no name"));
  EXPECT_THAT(refused_pickle("\x80\2cnumpy\nndarray\n)\x81."),
              HasSubstr("makes an object of numpy.ndarray"));
  EXPECT_THAT(refused_pickle("\x80\2K\1}b."), HasSubstr("gives a state to what has none"));
  EXPECT_THAT(refused_pickle("\x80\2c_codecs\nencode\n"s + text("a") + text("rot13") + "\x86R."),
              HasSubstr("another encoding"));
}

TEST(ForeignPickle, RefusesOpcodesThatTorchDoesNotWrite) {
  for (const auto& [opcode, shown] : {std::pair{"i"s, "0x69"},
                                      {"o"s, "0x6f"},
                                      {"\x82\1"s, "0x82"},
                                      {"\x92"s, "0x92"},
                                      {"P1\n"s, "0x50"},
                                      {"I1\n"s, "0x49"}})
    EXPECT_THAT(refused_pickle("\x80\2("s + opcode + "."),
                AllOf(StartsWith("Unsupported"), HasSubstr(shown)))
        << shown;
  EXPECT_THAT(refused_pickle("\x80\6N."), HasSubstr("protocol 6"));
}

TEST(ForeignPickle, AllocatesNothingThatIsOnlyClaimed) {
  EXPECT_THAT(refused_pickle("\x80\2\x8b"s + number(0x7FFFFFFF, 4) + "a."),
              HasSubstr("an int of 2147483647 bytes"));
  EXPECT_THAT(refused_pickle("\x80\2X"s + number(0xFFFFFFFF, 4) + "a."),
              HasSubstr("is cut off: 4294967295 bytes should follow"));
  EXPECT_THAT(refused_pickle("\x80\4\x8d"s + number(~0ULL, 8) + "a."), HasSubstr("is cut off"));
  EXPECT_THAT(refused_pickle("\x80\4\x95"s + number(~0ULL, 8) + "N."), HasSubstr("frame"));
  EXPECT_THAT(refused_pickle("\x80\2Nr"s + number(0xFFFFFFFF, 4) + "."),
              HasSubstr("remembers value number 4294967295"));
  EXPECT_THAT(refused_pickle("\x80\2h\5."), HasSubstr("recalls value number 5"));
}

TEST(ForeignPickle, BoundsDepthStackAndCount) {
  std::string deep = "\x80\2";
  for (int i = 0; i < 200'000; ++i) deep += "]";
  for (int i = 1; i < 200'000; ++i) deep += "a";
  EXPECT_THAT(refused_pickle(deep + "."), HasSubstr("nested deeper than 100"));
  EXPECT_THAT(refused_pickle("\x80\2"s + std::string(100'000, '(') + "."),
              HasSubstr("1000 open marks"));
  EXPECT_THAT(refused_pickle("\x80\2"s + std::string(1'000'001, 'N') + "."),
              HasSubstr("max_stack"));
  PickleOptions few;
  few.max_objects = 1000;
  EXPECT_THAT(refused_pickle("\x80\2("s + std::string(2000, ']') + "l.", few),
              HasSubstr("max_objects"));
}

/// Ten lists of ten times the list before: 10^9 values in 300 bytes.
TEST(ForeignPickle, RefusesWhatUnfoldsToTooMuch) {
  std::string bomb =
      "\x80\4K\1\x94"
      "0";
  for (int level = 0; level < 9; ++level) {
    bomb += "](";
    for (int i = 0; i < 10; ++i) bomb += "h"s + static_cast<char>(level);
    bomb +=
        "e\x94"
        "0";
  }
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THAT(refused_pickle(bomb + "h\x9."), HasSubstr("unfolds"));
  EXPECT_THAT(refused_pickle(bomb + "h\x6."), HasSubstr("unfolds to more than 10"));  // 10^6, still too many for so few bytes
  EXPECT_EQ(refused_pickle(bomb + "h\x4."), "");
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds{2});
  EXPECT_THAT(refused_pickle("\x80\4]\x94h\0a."s), HasSubstr("contains itself"));
}

TEST(ForeignPickle, RefusesMalformedStacks) {
  EXPECT_THAT(refused_pickle("\x80\2."), HasSubstr("empty stack"));
  EXPECT_THAT(refused_pickle("\x80\2NN."), HasSubstr("left over"));
  EXPECT_THAT(refused_pickle("\x80\2N.N"), HasSubstr("goes on after its end"));
  EXPECT_THAT(refused_pickle("\x80\2t."), HasSubstr("a mark that was not set"));
  EXPECT_THAT(refused_pickle("\x80\2}(NNNu."), HasSubstr("key without a value"));
  EXPECT_THAT(refused_pickle("\x80\2N(\x85."), HasSubstr("empty stack"));
  EXPECT_THAT(refused_pickle("\x80\2"s + "X" + number(2, 4) + "\xC3\x28."), HasSubstr("not UTF-8"));
}

/// ('storage', FloatStorage, '0', 'cpu', <elements>) and _rebuild_tensor_v2(…, offset, (size,),
/// (stride,), False, OrderedDict())
std::string tensor_pickle(std::uint64_t elements, std::uint64_t offset, std::uint64_t size,
                          std::uint64_t stride) {
  const auto integer = [](std::uint64_t value) { return "\x8a\x08"s + number(value, 8); };
  return "\x80\2ctorch._utils\n_rebuild_tensor_v2\n(("s + text("storage") +
         "ctorch\nFloatStorage\n" + text("0") + text("cpu") + integer(elements) + "tQ" +
         integer(offset) + integer(size) + "\x85" + integer(stride) + "\x85\x89" +
         "ccollections\nOrderedDict\n)RtR.";
}

TEST(ForeignPickle, TensorsStayInsideTheirStorage) {
  const std::vector<std::string> storage{std::string(16, '\1')};
  EXPECT_EQ(refused(make_torch_file(tensor_pickle(4, 0, 4, 1), storage)), "");
  EXPECT_EQ(refused(make_torch_file(tensor_pickle(4, 1, 2, 2), storage)), "");
  for (const auto& [offset, size, stride] : {std::tuple{1ULL, 4ULL, 1ULL},
                                             {0ULL, 3ULL, 2ULL},
                                             {4ULL, 1ULL, 1ULL},
                                             {~0ULL, 1ULL, 1ULL},
                                             {0ULL, 5ULL, 1ULL},
                                             {0ULL, 3ULL, 1ULL << 62},
                                             {0ULL, 1ULL << 40, 1ULL << 40},
                                             {1ULL << 62, 4ULL, 1ULL}})
    EXPECT_THAT(refused(make_torch_file(tensor_pickle(4, offset, size, stride), storage)),
                HasSubstr("beyond its storage"))
        << offset << " " << size;
  EXPECT_THAT(refused(make_torch_file(tensor_pickle(4, 0, ~0ULL, 1), storage)),
              HasSubstr("impossible shape"));
  EXPECT_THAT(refused(make_torch_file(tensor_pickle(4, 0, 4, ~0ULL), storage)),
              HasSubstr("negative stride"));
  EXPECT_THAT(refused(make_torch_file(tensor_pickle(4, 0, 1ULL << 50, 0), storage)),
              HasSubstr("expanded tensor"));
  EXPECT_THAT(refused(make_torch_file(tensor_pickle(5, 0, 4, 1), storage)),
              HasSubstr("claims that storage '0' has 5 elements"));
  EXPECT_THAT(refused(make_torch_file(tensor_pickle(4, 0, 4, 1))),
              HasSubstr("lacks the storage '0'"));
}

TEST(ForeignPickle, ObjectsOfAllowedClassesAreData) {
  const std::string pickle = "\x80\2cdeepspeed.runtime\nScaler\n)\x81}"s + text("scale") + "K\7sb.";
  EXPECT_THAT(refused_pickle(pickle), HasSubstr("deepspeed.runtime.Scaler"));
  PickleOptions options;
  options.data_classes = {"deepspeed."};
  auto file = make_torch_file(pickle);
  const auto read = read_torch_bytes(testing::bytes_of_text(file), nullptr, "test.bin", options);
  EXPECT_EQ(read.root.class_name(), "deepspeed.runtime.Scaler");
  EXPECT_EQ(read.root.at("scale").integer(), 7);
  EXPECT_THAT(refused_pickle("\x80\2cos\nsystem\n)R.", options), HasSubstr("os.system"));
  EXPECT_THAT(
      refused_pickle("\x80\2c__builtin__\ngetattr\ncbuiltins\nlist\n"s + text("x") + "\x86R.",
                     options),
      HasSubstr("builtins.getattr"));
}

TEST(ForeignPickle, ReadsWhatTorchWrites) {
  for (const auto* const name :
       {"nested.pt", "nested_protocol3.pt", "nested_protocol4.pt", "nested_protocol5.pt"}) {
    const auto file = read_torch_file(fixture(name));
    const auto root = file.root;
    const auto tuple = root.at("a")[1];
    EXPECT_EQ(tuple[0].integer(), 1) << name;
    EXPECT_EQ(tuple[1].integer(), -2) << name;
    EXPECT_EQ(tuple[2].integer(), 1LL << 40) << name;
    EXPECT_EQ(tuple[3].integer(), -(1LL << 40)) << name;
    EXPECT_EQ(tuple[4].integer(), 1) << name;
    EXPECT_TRUE(tuple[5].is(PickleKind::None)) << name;
    EXPECT_EQ(root.at("b").at("text").text(), "h\xC3\xA4\xC3\x9F") << name;
    EXPECT_EQ(root.at("b").value(1).number(), 0.25) << name;
    EXPECT_EQ(root.at("set")[0].integer(), 1) << name;
    EXPECT_EQ(root.at("size")[1].integer(), 3) << name;
    EXPECT_EQ(root.at("dtype").dtype(), TorchDtype::bfloat16) << name;
    EXPECT_EQ(root.at("device").text(), "cpu") << name;
    EXPECT_EQ(root.at("big").text(), "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF\0"s) << name;
    EXPECT_EQ(root.at("array").tensor().shape, (std::vector<std::int64_t>{2, 3})) << name;
    EXPECT_EQ(static_cast<int>(contiguous_bytes(root.at("array").tensor())[20]), 5) << name;
    EXPECT_EQ(root.at("number").number(), 2.5) << name;
    EXPECT_EQ(root.at("bytes").text(), "\0\xFF"s) << name;
    EXPECT_EQ(root.at("b").at("list")[0].at("x").tensor().storage.data(),
              root.at("a")[0].tensor().storage.data())
        << "a shared storage";
    EXPECT_THAT(failure_of([&] { (void)root.at("text"); }), HasSubstr("lacks 'text'"));
    EXPECT_THAT(failure_of([&] { (void)root.at("a").text(); }),
                HasSubstr("has list where str belongs"));
  }
}

TEST(ForeignPickle, SaysWhatElseAFileIs) {
  const auto refused_file = [](const std::string& name) {
    return failure_of([&] { (void)read_torch_file(fixture(name)); });
  };
  EXPECT_THAT(refused_file("script.pt"),
              AllOf(StartsWith("Unsupported"), HasSubstr("TorchScript")));
  EXPECT_THAT(refused_file("old_format.bin"),
              AllOf(StartsWith("Unsupported"), HasSubstr("before PyTorch 1.6")));
  EXPECT_THAT(refused_file("sparse.bin"),
              AllOf(StartsWith("Unsupported"), HasSubstr("_rebuild_sparse_tensor")));
  EXPECT_THAT(refused_file("expanded.bin"), HasSubstr("expanded tensor"));
  EXPECT_THAT(refused_file("module.safetensors"), HasSubstr("does not begin as a zip archive"));
  EXPECT_THAT(refused_file("none.bin"), StartsWith("FileNotFound"));
  EXPECT_THAT(refused_file("save_state"), StartsWith("FileCorrupt"));
}

TEST(ForeignZip, RefusesWhatTorchDoesNotWrite) {
  const testing::ZipItem pickle{"a/data.pkl", "\x80\2N."};
  EXPECT_EQ(refused(make_zip({pickle})), "");
  EXPECT_THAT(refused(make_zip({{"a/data.pkl", "\x80\2N.", 8}})),
              AllOf(StartsWith("Unsupported"), HasSubstr("'a/data.pkl' is compressed (method 8)")));
  EXPECT_THAT(refused(make_zip({{"a/data.pkl", "\x80\2N.", 0, 1}})), HasSubstr("encrypted"));
  EXPECT_THAT(refused(make_zip({pickle, pickle})), HasSubstr("twice"));
  for (const auto* const name :
       {"../data.pkl", "/etc/data.pkl", "a/../b", "a\\b", "", "a//b", "./a", "a/."})
    EXPECT_THAT(refused(make_zip({pickle, {name, "x"}})), HasSubstr("no plain relative path"))
        << name;
  EXPECT_THAT(refused(make_zip({{"data.pkl", "\x80\2N."}})), HasSubstr("no data.pkl"));
  EXPECT_THAT(refused(make_zip({pickle, {"b/data.pkl", "\x80\2N."}})),
              HasSubstr("more than one data.pkl"));
  EXPECT_THAT(refused(make_zip({pickle, {"a/byteorder", "big"}})),
              AllOf(StartsWith("Unsupported"), HasSubstr("big-endian")));
}

/// Two directory records for the same bytes.
TEST(ForeignZip, RefusesOverlappingEntriesAndFalseSizes) {
  const auto good = make_zip({{"a/data.pkl", "\x80\2N."}, {"a/x", "123"}});
  auto overlapping = good;
  const auto second = good.rfind("PK\1\2");
  overlapping.replace(second + 42, 4, number(0, 4));
  EXPECT_THAT(refused(overlapping), HasSubstr("another name in its own header"));
  auto long_entry = good;
  const auto first = good.find("PK\1\2");
  long_entry.replace(first + 20, 8, number(30, 4) + number(30, 4));
  EXPECT_THAT(refused(long_entry), HasSubstr("contradicts"));
  auto both = long_entry;
  both.replace(18, 8, number(30, 4) + number(30, 4));
  EXPECT_THAT(refused(both), HasSubstr("overlap"));
  auto huge = good;
  huge.replace(first + 20, 8, number(0xFFFFFFF0, 4) + number(0xFFFFFFF0, 4));
  EXPECT_THAT(refused(huge), HasSubstr("reaches into the zip directory"));
  auto count = good;
  count.replace(good.rfind("PK\5\6") + 8, 4, number(60000, 2) + number(60000, 2));
  EXPECT_THAT(refused(count), HasSubstr("claims 60000 entries"));
}

TEST(ForeignZip, FindsAChangedByteByItsChecksum) {
  auto file = make_torch_file(tensor_pickle(4, 0, 4, 1), {std::string(16, '\1')});
  file[file.find(std::string(16, '\1')) + 5] ^= 4;
  EXPECT_THAT(refused(file),
              AllOf(StartsWith("FileCorrupt"), HasSubstr("checksum of 'data/0' is wrong")));
  PickleOptions options;
  options.verify_crc = false;
  EXPECT_EQ(refused(file, options), "");
}

TEST(ForeignZip, ChecksumIsThatOfZip) {
  std::string text = "123456789";
  EXPECT_EQ(detail::crc32(testing::bytes_of_text(text)), 0xCBF43926U);
}

}  // namespace
}  // namespace troupe
