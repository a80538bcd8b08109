#include "server/codec/message_scan.h"

namespace expertd {
namespace {

// Which rules of a message have been met.
class Seen {
 public:
  explicit Seen(absl::Span<const FieldRule> rules) : rules_(rules) {}

  bool Has(const FieldRule& rule) const { return (bits_ >> (&rule - rules_.data()) & 1) != 0; }
  void Add(const FieldRule& rule) { bits_ |= std::uint64_t{1} << (&rule - rules_.data()); }
  bool HasMemberOf(absl::string_view oneof) const {
    for (const FieldRule& rule : rules_) {
      if (rule.oneof == oneof && Has(rule)) return true;
    }
    return false;
  }

 private:
  absl::Span<const FieldRule> rules_;
  std::uint64_t bits_ = 0;
};

const FieldRule* FindRule(absl::Span<const FieldRule> rules, std::uint32_t number) {
  for (const FieldRule& rule : rules) {
    if (rule.number == number) return &rule;
  }
  return nullptr;
}

bool ReadField(const FieldRule& rule, WireReader* reader, Scan* scan) {
  std::uint64_t number = 0;
  if (!(rule.type == WireType::kBytes ? reader->ReadSize(&number) : reader->ReadNumber(&number))) return false;
  rule.take({rule.name, number, *reader}, scan);
  if (rule.type != WireType::kBytes) return true;
  if (rule.message.empty()) return reader->Skip(number);

  const std::uint64_t outer = reader->Confine(number);
  if (!ScanMessage(rule.message, reader, scan)) return false;
  reader->Widen(outer);
  return true;
}

void RefuseRepetition(const FieldRule& rule, const Seen& seen, Scan* scan) {
  if (seen.Has(rule)) {
    scan->Refuse(rule.name, "given twice");
  } else if (!rule.oneof.empty() && seen.HasMemberOf(rule.oneof)) {
    scan->Refuse(rule.name, "given beside another ", rule.oneof);
  }
}

void RefuseGaps(absl::Span<const FieldRule> rules, const Seen& seen, Scan* scan) {
  for (const FieldRule& rule : rules) {
    if (!rule.required || seen.Has(rule) || (!rule.oneof.empty() && seen.HasMemberOf(rule.oneof))) continue;
    scan->Refuse(rule.oneof.empty() ? rule.name : rule.oneof, "missing");
  }
}

}  // namespace

bool ScanMessage(absl::Span<const FieldRule> rules, WireReader* reader, Scan* scan) {
  Seen seen(rules);
  while (!reader->AtLimit()) {
    WireTag tag;
    if (!reader->ReadTag(&tag)) return false;
    const FieldRule* rule = FindRule(rules, tag.number);
    if (rule == nullptr || rule->type != tag.type) {
      if (!reader->SkipField(tag)) return false;
      if (rule != nullptr) {
        scan->Refuse(rule->name, "wire type is ", WireTypeName(tag.type), ", must be ", WireTypeName(rule->type));
      }
      continue;
    }
    RefuseRepetition(*rule, seen, scan);
    seen.Add(*rule);
    if (!ReadField(*rule, reader, scan)) return false;
  }
  RefuseGaps(rules, seen, scan);
  return true;
}

}  // namespace expertd
