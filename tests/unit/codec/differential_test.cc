// Random mutations of requests, read by Protobuf and by us: we accept exactly what Protobuf accepts, less the stricter
// rules of the contract, and then read the same values.
//
// The rules are judged here a second time, from the unknown fields that an empty message keeps: Protobuf's own account
// of which fields came, how often, and with which wire types. It does not show bits that Protobuf drops and groups
// within its own depth, so refusals for these are counted and left to the table of malformed requests.
#include <algorithm>
#include <cstdint>
#include <limits>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "expertd/v1/expertd.pb.h"
#include "gmock/gmock.h"
#include "google/protobuf/empty.pb.h"
#include "google/protobuf/stubs/logging.h"
#include "google/protobuf/unknown_field_set.h"
#include "gtest/gtest.h"
#include "server/codec/forward_codec.h"
#include "tests/unit/codec/codec_testing.h"
#include "tests/unit/codec/raw_message.h"

namespace expertd {
namespace {

using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;
using testing::AnyOf;
using testing::HasSubstr;

struct Rule {
  std::uint32_t number;
  UnknownField::Type type;
  std::uint64_t least;  // of the number, or of the bytes' length
  std::uint64_t most;
  bool required = false;
};
constexpr std::uint64_t kAny = std::numeric_limits<std::uint64_t>::max();
constexpr std::uint64_t kU32 = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kNonNegative = std::numeric_limits<std::int64_t>::max();
constexpr std::uint32_t kRoutingField = 13, kHiddenStates = 20, kRegion = 21;
const std::vector<Rule> kRequestRules = {
    {1, UnknownField::TYPE_LENGTH_DELIMITED, 1, 256, true},
    {2, UnknownField::TYPE_VARINT, 0, kU32},
    {3, UnknownField::TYPE_VARINT, 0, kAny},
    {4, UnknownField::TYPE_VARINT, 0, kNonNegative},
    {5, UnknownField::TYPE_VARINT, 1, 3, true},
    {6, UnknownField::TYPE_VARINT, 1, 3},
    {7, UnknownField::TYPE_VARINT, 0, kAny},
    {8, UnknownField::TYPE_VARINT, 0, kAny},
    {9, UnknownField::TYPE_VARINT, 0, kAny},
    {10, UnknownField::TYPE_VARINT, 0, 9},
    {11, UnknownField::TYPE_LENGTH_DELIMITED, 0, 64},
    {12, UnknownField::TYPE_LENGTH_DELIMITED, 0, 128},
    {13, UnknownField::TYPE_LENGTH_DELIMITED, 0, kAny},
    {14, UnknownField::TYPE_VARINT, 0, 128},
    {15, UnknownField::TYPE_VARINT, 0, 128},
    {19, UnknownField::TYPE_LENGTH_DELIMITED, 0, kAny},
    {kHiddenStates, UnknownField::TYPE_LENGTH_DELIMITED, 0, kAny},
    {kRegion, UnknownField::TYPE_LENGTH_DELIMITED, 0, kAny},
};
const std::vector<Rule> kRegionRules = {
    {1, UnknownField::TYPE_VARINT, 0, kAny},
    {2, UnknownField::TYPE_VARINT, 0, kAny},
    {3, UnknownField::TYPE_VARINT, 0, kAny},
};
const std::vector<Rule> kRoutingRules = {
    {1, UnknownField::TYPE_VARINT, 0, kU32},
    {2, UnknownField::TYPE_LENGTH_DELIMITED, 0, kAny},
    {3, UnknownField::TYPE_LENGTH_DELIMITED, 0, kAny},
};

struct Verdict {
  bool decodable = true;
  bool acceptable = true;
};

Verdict Judge(const std::string& bytes, const std::vector<Rule>& rules) {
  google::protobuf::Empty kept;
  if (!kept.ParseFromString(bytes)) return {.decodable = false, .acceptable = false};
  const UnknownFieldSet& fields = kept.GetReflection()->GetUnknownFields(kept);
  Verdict verdict;
  std::set<std::uint32_t> seen;
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    for (const Rule& rule : rules) {
      if (rule.number != static_cast<std::uint32_t>(field.number())) continue;
      if (field.type() != rule.type) {
        verdict.acceptable = false;
        continue;
      }
      const std::uint64_t value =
          rule.type == UnknownField::TYPE_VARINT ? field.varint() : field.length_delimited().size();
      if (!seen.insert(rule.number).second || value < rule.least || value > rule.most) verdict.acceptable = false;
      // A scale block is 128 or 0, and nothing between.
      if (&rules == &kRequestRules && (rule.number == 14 || rule.number == 15) && value % 128 != 0) {
        verdict.acceptable = false;
      }
      if (&rules == &kRequestRules && (rule.number == kRoutingField || rule.number == kRegion)) {
        const Verdict nested = Judge(field.length_delimited(), rule.number == kRegion ? kRegionRules : kRoutingRules);
        verdict.decodable &= nested.decodable;
        verdict.acceptable &= nested.acceptable;
      }
    }
  }
  for (const Rule& rule : rules) verdict.acceptable &= !rule.required || seen.contains(rule.number);
  if (&rules == &kRequestRules) verdict.acceptable &= seen.contains(kHiddenStates) != seen.contains(kRegion);
  return verdict;
}

class Mutator {
 public:
  explicit Mutator(std::uint32_t seed) : random_(seed) {}

  std::size_t Below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random_); }
  bool OneIn(std::size_t n) { return Below(n) == 0; }

  // A request of random known and unknown fields in random order, mostly well-formed.
  std::string Request() {
    RawMessage message = {{RawBytes(1, Text(20)), RawNumber(5, 1 + Below(3)),
                           OneIn(6) ? Region() : RawBytes(20, std::string(Below(40), 'h'))}};
    for (std::size_t extra = Below(12); extra > 0; --extra) {
      if (OneIn(3)) {
        message.fields.push_back(OddField());
      } else {
        RawField field = GoodField();
        if (OneIn(20)) {
          message.fields.push_back(field);
        } else {
          message = message.With(field);
        }
      }
    }
    if (OneIn(40)) message.fields.erase(message.fields.begin());
    std::shuffle(message.fields.begin(), message.fields.end(), random_);
    return message.Bytes();
  }

  std::string Mutated(std::string bytes) {
    for (std::size_t edits = Below(3); edits > 0 && !bytes.empty(); --edits) {
      const std::size_t at = Below(bytes.size());
      switch (Below(5)) {
        case 0:
          bytes[at] = static_cast<char>(bytes[at] ^ (1 << Below(8)));
          break;
        case 1:
          bytes.insert(at, 1, static_cast<char>(Below(256)));
          break;
        case 2:
          bytes.erase(at, 1 + Below(3));
          break;
        case 3:
          bytes.insert(at, bytes.substr(Below(bytes.size()), Below(8)));
          break;
        case 4:
          if (OneIn(4)) bytes.resize(at);
          break;
      }
    }
    return bytes;
  }

 private:
  std::string Text(std::size_t longest) {
    static const std::string kPieces[] = {"a", "model/", "\xc3\xa9", "\xe2\x82\xac", "7", "\xf0\x9f\x8c\x8d"};
    std::string text = "m";
    while (text.size() + 4 < longest && !OneIn(5)) text += kPieces[Below(6)];
    if (OneIn(50)) text += static_cast<char>(0x80 + Below(128));
    return text;
  }

  std::uint64_t Number() {
    static constexpr std::uint64_t kEdges[] = {
        0, 1, 2, 9, 10, 127, 128, kU32, kU32 + 1, kNonNegative, kNonNegative + 1, kAny};
    return kEdges[Below(std::size(kEdges))];
  }

  RawField GoodField() {
    switch (const auto number = static_cast<std::uint32_t>(2 + Below(15))) {
      case 2:
        return RawNumber(number, Number() & kU32);
      case 4:
        return RawNumber(number, Number() & kNonNegative);
      case 5:
      case 6:
        return RawNumber(number, 1 + Below(3));
      case 10:
        return RawNumber(number, Below(10));
      case 11:
        return RawBytes(number, Text(64));
      case 12:
        return RawBytes(number, Text(128));
      case 13: {
        RawMessage routing;
        if (!OneIn(4)) routing.fields.push_back(RawNumber(1, Number() & kU32));
        if (!OneIn(4)) routing.fields.push_back(RawBytes(2, "abcd"));
        if (!OneIn(4)) routing.fields.push_back(RawBytes(3, "efgh"));
        if (OneIn(10)) routing.fields.push_back(OddField());
        std::shuffle(routing.fields.begin(), routing.fields.end(), random_);
        return RawBytes(number, routing.Bytes());
      }
      case 14:
      case 15:
        return RawNumber(number, OneIn(2) ? 128 : 0);
      case 16:
        return RawBytes(19, "scales!");
      default:
        return RawNumber(number, Number());
    }
  }

  RawField Region() {
    RawMessage region;
    for (std::uint32_t number = 1; number <= 3; ++number) {
      if (!OneIn(4)) region.fields.push_back(RawNumber(number, Number()));
    }
    if (OneIn(10)) region.fields.push_back(OddField());
    std::shuffle(region.fields.begin(), region.fields.end(), random_);
    return RawBytes(kRegion, region.Bytes());
  }

  // Of any number and type: mostly one that we do not know.
  RawField OddField() {
    const auto number = static_cast<std::uint32_t>(OneIn(8) ? 1 + Below(22) : 21 + Below(300));
    switch (Below(5)) {
      case 0:
        return RawNumber(number, Number());
      case 1:
        return RawFixed64(number);
      case 2:
        return RawBytes(number, Text(30));
      case 3:
        return RawGroup(number, OneIn(2) ? OddField().bytes : "");
      default:
        return RawFixed32(number);
    }
  }

  std::mt19937 random_;
};

TEST(DifferentialTest, WeAcceptWhatProtobufAcceptsLessTheStricterRules) {
  constexpr int kRounds = 60000;
  int accepted = 0, refused = 0, undecodable = 0, invisible = 0;
  const google::protobuf::LogSilencer quiet;  // it logs every string that is not UTF-8
  Mutator mutator(20260101);
  for (int round = 0; round < kRounds && !testing::Test::HasFailure(); ++round) {
    const std::string bytes = mutator.Mutated(mutator.Request());
    std::vector<std::size_t> cuts(mutator.Below(4));
    for (std::size_t& cut : cuts) cut = mutator.Below(bytes.size() + 1);
    std::sort(cuts.begin(), cuts.end());
    const CutMessage message(bytes, cuts);
    std::uint64_t request_id = 0;
    bool decodable = false;
    const absl::StatusOr<ForwardHead> head = ScanForwardRequest(message.slices(), &request_id, &decodable);

    SCOPED_TRACE(testing::Message() << "round " << round << ": " << head.status());
    v1::ForwardRequest plain;
    const bool plain_reads = plain.ParseFromString(bytes);
    const Verdict verdict = Judge(bytes, kRequestRules);
    if (!decodable && verdict.decodable) {
      EXPECT_THAT(head.status().message(),
                  AnyOf(HasSubstr("tag of more than 32"), HasSubstr("number of more than 64")));
      ++invisible;
      continue;
    }
    EXPECT_EQ(decodable, verdict.decodable);
    EXPECT_EQ(head.ok(), plain_reads && verdict.acceptable);
    if (plain_reads) {
      EXPECT_EQ(request_id, plain.request_id());
    }
    if (head.ok()) ExpectSame(*head, message.slices(), plain);
    ++(head.ok() ? accepted : decodable ? refused : undecodable);
  }
  // The test is worth something only while all three happen often.
  EXPECT_GT(accepted, kRounds / 10);
  EXPECT_GT(refused, kRounds / 10);
  EXPECT_GT(undecodable, kRounds / 50);
  EXPECT_LT(invisible, kRounds / 50);
  RecordProperty("accepted", accepted);
  RecordProperty("refused", refused);
  RecordProperty("undecodable", undecodable);
  RecordProperty("invisible", invisible);
}

// Bytes without any structure: mostly the first few are enough to know.
TEST(DifferentialTest, NoiseIsAcceptedByNobody) {
  std::mt19937 random(7);
  for (int round = 0; round < 20000; ++round) {
    std::string bytes(random() % 24, '\0');
    for (char& byte : bytes) byte = static_cast<char>(random());
    bool decodable = false;
    const absl::StatusOr<ForwardHead> head = ScanForwardRequest(CutMessage(bytes).slices(), nullptr, &decodable);
    EXPECT_FALSE(head.ok());
    if (decodable) {
      EXPECT_TRUE(Judge(bytes, kRequestRules).decodable);
    }
  }
}

}  // namespace
}  // namespace expertd
