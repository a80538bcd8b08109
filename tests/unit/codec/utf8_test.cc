#include "server/codec/utf8.h"

#include <string>

#include "expertd/v1/expertd.pb.h"
#include "google/protobuf/stubs/logging.h"
#include "gtest/gtest.h"

namespace expertd {
namespace {

// Protobuf refuses a string field that is not UTF-8.
bool ProtobufAccepts(const std::string& text) {
  const google::protobuf::LogSilencer quiet;
  const std::string bytes = std::string(1, '\x12') + static_cast<char>(text.size()) + text;
  return v1::Error().ParseFromString(bytes);
}

TEST(Utf8Test, AgreesWithProtobufOnOneAndTwoBytes) {
  for (int first = 0; first < 256; ++first) {
    const std::string one(1, static_cast<char>(first));
    EXPECT_EQ(ValidUtf8Prefix(one) == 1, ProtobufAccepts(one)) << first;
    for (int second = 0; second < 256; ++second) {
      const std::string two = one + static_cast<char>(second);
      EXPECT_EQ(ValidUtf8Prefix(two) == 2, ProtobufAccepts(two)) << first << " " << second;
    }
  }
}

TEST(Utf8Test, AgreesWithProtobufOnThreeAndFourBytes) {
  const std::string edges = {'\x00', '\x41', '\x7f', '\x80', '\x8f', '\x90', '\x9f', '\xa0', '\xbf', '\xc0', '\xff'};
  for (int first = 0xe0; first < 256; ++first) {
    for (char second : edges) {
      for (char third : edges) {
        const std::string three = {static_cast<char>(first), second, third};
        EXPECT_EQ(ValidUtf8Prefix(three) == 3, ProtobufAccepts(three)) << first;
        for (char fourth : edges) {
          const std::string four = three + fourth;
          EXPECT_EQ(ValidUtf8Prefix(four) == 4, ProtobufAccepts(four)) << first;
        }
      }
    }
  }
}

TEST(Utf8Test, ReplacesWhatIsNotValid) {
  EXPECT_EQ(ToValidUtf8(""), "");
  EXPECT_EQ(ToValidUtf8("plain"), "plain");
  EXPECT_EQ(ToValidUtf8("\xe2\x82\xac"), "\xe2\x82\xac");
  EXPECT_EQ(ToValidUtf8("\xff"
                        "a\xc3\xa9\xc3"),
            "?a\xc3\xa9?");
  EXPECT_EQ(ToValidUtf8("\xed\xa0\x80"), "???");
}

}  // namespace
}  // namespace expertd
