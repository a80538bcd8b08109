// The rules of ModelInferRequest; field numbers are grpc_service.proto's.
#include "server/kserve/infer_request.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/codec/wire_reader.h"

namespace expertd::kserve {
namespace {

using inference::InferParameter;
using Parameters = google::protobuf::Map<std::string, InferParameter>;

constexpr std::uint32_t kRawInputContents = 7;

struct DataType {
  absl::string_view name;
  DType dtype;
};
constexpr DataType kFloats[] = {{"FP32", DType::kF32}, {"BF16", DType::kBF16}};
constexpr DataType kInt32[] = {{"INT32", DType::kI32}};
constexpr DataType kFloat32[] = {{"FP32", DType::kF32}};

enum Input { kHiddenStates, kTopkIds, kTopkWeights, kInputs };
struct InputRule {
  absl::string_view name;
  absl::Span<const DataType> datatypes;
  WireRange ForwardHead::*range;
};
constexpr InputRule kInputRules[kInputs] = {{"hidden_states", kFloats, &ForwardHead::hidden_states},
                                            {"topk_ids", kInt32, &ForwardHead::topk_ids},
                                            {"topk_weights", kFloat32, &ForwardHead::topk_weights}};
constexpr absl::string_view kOutput = "output";

template <class... Parts>
absl::Status Refuse(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

const InferParameter* FindParameter(const Parameters& parameters, const char* name) {
  const auto found = parameters.find(name);
  return found == parameters.end() ? nullptr : &found->second;
}

// Whole numbers come signed or unsigned; negative ones are none.
absl::StatusOr<std::uint64_t> NumberOf(absl::string_view name, const InferParameter& value) {
  if (value.has_uint64_param()) return value.uint64_param();
  if (value.has_int64_param() && value.int64_param() >= 0) return static_cast<std::uint64_t>(value.int64_param());
  return Refuse(name, "must be a whole number, 0 or more");
}

absl::Status TakeTimeout(const InferParameter& value, ForwardHead* head) {
  const absl::StatusOr<std::uint64_t> microseconds = NumberOf("timeout", value);
  if (microseconds.ok()) head->timeout_us = *microseconds;
  return microseconds.status();
}

// The protocol's most urgent is 1, and 0 the default; ours are 9 and 0.
absl::Status TakePriority(const InferParameter& value, ForwardHead* head) {
  const absl::StatusOr<std::uint64_t> priority = NumberOf("priority", value);
  if (!priority.ok()) return priority.status();
  if (*priority > 9) return Refuse("priority", *priority, " is not in 0..9");
  head->priority = *priority == 0 ? 0 : 10 - static_cast<int>(*priority);
  return absl::OkStatus();
}

absl::Status TakeSharedExpert(const InferParameter& value, ForwardHead* head) {
  if (!value.has_bool_param()) return Refuse("shared_expert", "must be a bool");
  head->shared_expert = value.bool_param();
  return absl::OkStatus();
}

absl::Status TakeFingerprint(const InferParameter& value, ForwardHead* head) {
  if (!value.has_string_param()) return Refuse("expected_fingerprint", "must be a string");
  head->expected_fingerprint = value.string_param();
  return absl::OkStatus();
}

// Every request of ours has one answer, so the final one is never empty.
absl::Status TakeEmptyFinalResponse(const InferParameter&, ForwardHead*) { return absl::OkStatus(); }

struct ParameterRule {
  absl::string_view name;
  absl::Status (*take)(const InferParameter& value, ForwardHead* head);
};
constexpr ParameterRule kParameters[] = {{"timeout", TakeTimeout},
                                         {"priority", TakePriority},
                                         {"shared_expert", TakeSharedExpert},
                                         {"expected_fingerprint", TakeFingerprint},
                                         {"triton_enable_empty_final_response", TakeEmptyFinalResponse}};

template <class Rules>
std::string Names(const Rules& rules) {
  return absl::StrJoin(rules, ", ", [](std::string* out, const auto& rule) { absl::StrAppend(out, rule.name); });
}

template <class Rules>
auto FindRule(const Rules& rules, absl::string_view name) {
  return std::find_if(std::begin(rules), std::end(rules), [&](const auto& rule) { return rule.name == name; });
}

template <class Values>
absl::string_view BytesOfArray(const Values& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(*values.data())};
}

}  // namespace

absl::StatusOr<LayerName> ParseModelName(absl::string_view name, absl::string_view version) {
  if (!version.empty() && version != kModelVersion) {
    return absl::NotFoundError(
        absl::StrCat("version '", version, "' of '", name, "': there is version ", kModelVersion));
  }
  const std::size_t slash = name.rfind('/');
  LayerName layer;
  if (slash == absl::string_view::npos || slash == 0 || !absl::SimpleAtoi(name.substr(slash + 1), &layer.layer)) {
    return absl::NotFoundError(absl::StrCat("model '", name, "' is not served here: a name is <model>/<layer index>"));
  }
  layer.model = std::string(name.substr(0, slash));
  return layer;
}

// Reads one message into one InferRequest.
class InferReader {
 public:
  InferReader(Slices message, const SharedMemoryOf& shared, InferRequest* out)
      : message_(message), shared_(shared), out_(*out) {}

  // InvalidArgument: not decodable.
  absl::Status Decode();
  absl::StatusOr<ForwardHead> Read();

 private:
  using Tensor = inference::ModelInferRequest::InferInputTensor;

  absl::Status SplitRawContents(std::string* rest);
  absl::Status TakeModel();
  absl::Status TakeParameters();
  absl::Status TakeInputs();
  absl::Status TakeInput(const Tensor& tensor);
  absl::StatusOr<std::int64_t> SizeOf(const Tensor& tensor, DType dtype) const;
  absl::StatusOr<WireRange> Locate(const Tensor& tensor, DType dtype, std::int64_t bytes);
  absl::StatusOr<WireRange> CopyShared(const Tensor& tensor, std::int64_t bytes);
  absl::StatusOr<SharedTensor> FindShared(absl::string_view name, const Parameters& parameters,
                                          std::uint64_t* bytes) const;
  absl::StatusOr<WireRange> Typed(const Tensor& tensor, DType dtype);
  WireRange AddPayload(absl::string_view bytes);
  absl::Status CheckInputs();
  absl::Status TakeOutputs();

  const Slices message_;
  const SharedMemoryOf& shared_;
  InferRequest& out_;
  ForwardHead head_;
  std::vector<WireRange> raw_;
  std::size_t next_raw_ = 0;
  std::uint64_t payload_bytes_ = 0;
  std::array<const Tensor*, kInputs> seen_ = {};
};

absl::Status InferReader::Decode() {
  std::string rest;
  if (absl::Status status = SplitRawContents(&rest); !status.ok()) return status;
  out_.fields_ = std::make_unique<inference::ModelInferRequest>();
  if (!out_.fields_->ParseFromString(rest)) {
    return absl::InvalidArgumentError("ModelInferRequest: not decodable");
  }
  out_.echo->model_name = out_.fields_->model_name();
  out_.echo->id = out_.fields_->id();
  return absl::OkStatus();
}

// A message less some of its fields is a message: `rest` gets all but the raw contents, of which the places are kept.
absl::Status InferReader::SplitRawContents(std::string* rest) {
  WireReader reader(message_);
  while (!reader.AtLimit()) {
    WireReader field = reader;
    WireTag tag;
    std::uint64_t size = 0;
    bool read = reader.ReadTag(&tag);
    if (read && tag.number == kRawInputContents && tag.type == WireType::kBytes) {
      read = reader.ReadSize(&size);
      if (read) raw_.push_back({reader.position(), size});
      read = read && reader.Skip(size);
    } else if (read && (read = reader.SkipField(tag))) {
      const std::size_t end = rest->size();
      rest->resize(end + (reader.position() - field.position()));
      field.Read(reinterpret_cast<std::byte*>(rest->data() + end), rest->size() - end);  // there: it was skipped
    }
    if (!read) {
      return absl::InvalidArgumentError(absl::StrCat("ModelInferRequest: not decodable: ", reader.status().message()));
    }
  }
  out_.payload.assign(message_.begin(), message_.end());
  payload_bytes_ = reader.position();
  return absl::OkStatus();
}

absl::StatusOr<ForwardHead> InferReader::Read() {
  for (const auto step : {&InferReader::TakeModel, &InferReader::TakeParameters, &InferReader::TakeInputs,
                          &InferReader::CheckInputs, &InferReader::TakeOutputs}) {
    if (absl::Status status = (this->*step)(); !status.ok()) return status;
  }
  return std::move(head_);
}

absl::Status InferReader::TakeModel() {
  absl::StatusOr<LayerName> name = ParseModelName(out_.fields_->model_name(), out_.fields_->model_version());
  if (!name.ok()) return name.status();
  head_.model = std::move(name->model);
  head_.layer = name->layer;
  return absl::OkStatus();
}

absl::Status InferReader::TakeParameters() {
  for (const auto& [name, value] : out_.fields_->parameters()) {
    const auto rule = FindRule(kParameters, name);
    if (rule == std::end(kParameters)) return Refuse("parameters", "'", name, "' is none of ", Names(kParameters));
    if (absl::Status status = rule->take(value, &head_); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status InferReader::TakeInputs() {
  for (const Tensor& tensor : out_.fields_->inputs()) {
    if (absl::Status status = TakeInput(tensor); !status.ok()) return status;
  }
  if (next_raw_ == raw_.size()) return absl::OkStatus();
  return Refuse("raw_input_contents", raw_.size(), " given, the inputs need ", next_raw_);
}

absl::Status InferReader::TakeInput(const Tensor& tensor) {
  const auto rule = FindRule(kInputRules, tensor.name());
  if (rule == std::end(kInputRules)) return Refuse("inputs", "'", tensor.name(), "' is none of ", Names(kInputRules));
  const Tensor*& seen = seen_[rule - kInputRules];
  if (seen != nullptr) return Refuse(tensor.name(), "given twice");
  seen = &tensor;
  const auto datatype = FindRule(rule->datatypes, tensor.datatype());
  if (datatype == rule->datatypes.end()) {
    return Refuse(tensor.name(), "datatype '", tensor.datatype(), "' is none of ", Names(rule->datatypes));
  }
  if (rule->range == &ForwardHead::hidden_states) head_.dtype = head_.output_dtype = datatype->dtype;
  const absl::StatusOr<std::int64_t> bytes = SizeOf(tensor, datatype->dtype);
  if (!bytes.ok()) return bytes.status();
  const absl::StatusOr<WireRange> range = Locate(tensor, datatype->dtype, *bytes);
  if (!range.ok()) return range.status();
  if (range->size != static_cast<std::uint64_t>(*bytes)) {
    return Refuse(tensor.name(), range->size, " bytes do not hold shape [", absl::StrJoin(tensor.shape(), ","), "] x ",
                  tensor.datatype(), " (", *bytes, " bytes)");
  }
  head_.*rule->range = *range;
  return absl::OkStatus();
}

absl::StatusOr<std::int64_t> InferReader::SizeOf(const Tensor& tensor, DType dtype) const {
  const std::string shape = absl::StrCat("shape [", absl::StrJoin(tensor.shape(), ","), "]");
  if (tensor.shape_size() != 2 || tensor.shape(0) < 0 || tensor.shape(1) < 0) {
    return Refuse(tensor.name(), shape, " must be two dimensions of 0 or more");
  }
  std::int64_t elements = 0, bytes = 0;
  if (__builtin_mul_overflow(tensor.shape(0), tensor.shape(1), &elements) ||
      __builtin_mul_overflow(elements, std::int64_t{BitsOf(dtype) / 8}, &bytes)) {
    return Refuse(tensor.name(), shape, " is beyond 9223372036854775807 bytes");
  }
  return bytes;
}

absl::StatusOr<WireRange> InferReader::Locate(const Tensor& tensor, DType dtype, std::int64_t bytes) {
  const bool in_region = FindParameter(tensor.parameters(), "shared_memory_region") != nullptr;
  if (tensor.has_contents() && (in_region || !raw_.empty())) {
    return Refuse(tensor.name(), "contents given beside ", in_region ? "shared_memory_region" : "raw_input_contents");
  }
  if (in_region) return CopyShared(tensor, bytes);
  if (raw_.empty()) return Typed(tensor, dtype);
  if (next_raw_ < raw_.size()) return raw_[next_raw_++];
  return Refuse("raw_input_contents", raw_.size(), " given, ", tensor.name(), " needs one more");
}

absl::StatusOr<WireRange> InferReader::CopyShared(const Tensor& tensor, std::int64_t bytes) {
  std::uint64_t given = 0;
  const absl::StatusOr<SharedTensor> shared = FindShared(tensor.name(), tensor.parameters(), &given);
  if (!shared.ok()) return shared.status();
  // Before anything is allocated for it.
  if (given != static_cast<std::uint64_t>(bytes)) return WireRange{0, given};
  if (bytes > shared_.max_tensor_bytes) {
    return Refuse(tensor.name(), bytes, " bytes, a request may have ", shared_.max_tensor_bytes);
  }
  out_.copied_.push_back(std::make_unique<char[]>(given));
  char* const copy = out_.copied_.back().get();
  if (absl::Status status = shared->Read({copy, given}); !status.ok()) return status;
  return AddPayload({copy, given});
}

absl::StatusOr<SharedTensor> InferReader::FindShared(absl::string_view name, const Parameters& parameters,
                                                     std::uint64_t* bytes) const {
  if (shared_.memory == nullptr)
    return Refuse(name, "shared_memory_region needs --kserve-shared-memory, and a caller on the server's machine");
  const InferParameter* region = FindParameter(parameters, "shared_memory_region");
  const InferParameter* size = FindParameter(parameters, "shared_memory_byte_size");
  const InferParameter* offset = FindParameter(parameters, "shared_memory_offset");
  if (!region->has_string_param()) return Refuse(name, "shared_memory_region must be a string");
  if (size == nullptr) return Refuse(name, "shared_memory_byte_size: missing");
  absl::StatusOr<std::uint64_t> number = NumberOf("shared_memory_byte_size", *size);
  if (!number.ok()) return number.status();
  *bytes = *number;
  number = offset == nullptr ? 0 : NumberOf("shared_memory_offset", *offset);
  if (!number.ok()) return number.status();
  return shared_.memory->Find(shared_.owner, region->string_param(), *number, *bytes);
}

absl::StatusOr<WireRange> InferReader::Typed(const Tensor& tensor, DType dtype) {
  const inference::InferTensorContents& contents = tensor.contents();
  const struct {
    DType dtype;
    absl::string_view bytes;
  } fields[] = {{DType::kF32, BytesOfArray(contents.fp32_contents())},
                {DType::kI32, BytesOfArray(contents.int_contents())}};
  for (const auto& field : fields) {
    if (field.dtype == dtype) return AddPayload(field.bytes);
  }
  if (!tensor.has_contents()) return WireRange{};
  return Refuse(tensor.name(), "contents: ", tensor.datatype(), " comes in raw_input_contents only");
}

WireRange InferReader::AddPayload(absl::string_view bytes) {
  const WireRange range = {payload_bytes_, bytes.size()};
  out_.payload.push_back(bytes);
  payload_bytes_ += bytes.size();
  return range;
}

absl::Status InferReader::CheckInputs() {
  if (seen_[kHiddenStates] == nullptr) return Refuse("inputs", "hidden_states is missing");
  head_.rows = seen_[kHiddenStates]->shape(0);
  out_.echo->hidden_size = seen_[kHiddenStates]->shape(1);
  const Tensor* ids = seen_[kTopkIds];
  const Tensor* weights = seen_[kTopkWeights];
  if (ids == nullptr && weights == nullptr) return absl::OkStatus();
  if (ids == nullptr || weights == nullptr) return Refuse("inputs", "topk_ids and topk_weights come together");
  head_.pre_routed = true;
  head_.k = ids->shape(1);
  for (const Tensor* tensor : {ids, weights}) {
    if (tensor->shape(0) == head_.rows && tensor->shape(1) == head_.k) continue;
    return Refuse(tensor->name(), "shape [", absl::StrJoin(tensor->shape(), ","), "] must be [", head_.rows, ",",
                  head_.k, "]");
  }
  return absl::OkStatus();
}

absl::Status InferReader::TakeOutputs() {
  if (out_.fields_->outputs_size() > 1)
    return Refuse("outputs", out_.fields_->outputs_size(), " asked for, there is 1");
  for (const auto& output : out_.fields_->outputs()) {
    if (output.name() != kOutput) return Refuse("outputs", "'", output.name(), "' is not '", kOutput, "'");
    if (FindParameter(output.parameters(), "classification") != nullptr) {
      return Refuse(kOutput, "classification is not for hidden states");
    }
    if (FindParameter(output.parameters(), "shared_memory_region") == nullptr) continue;
    std::uint64_t bytes = 0;
    absl::StatusOr<SharedTensor> place = FindShared(kOutput, output.parameters(), &bytes);
    if (!place.ok()) return place.status();
    if (bytes < head_.hidden_states.size) {
      return Refuse(kOutput, "shared_memory_byte_size ", bytes, " is less than the ", head_.hidden_states.size,
                    " that the rows have");
    }
    out_.echo->output = *std::move(place);
    out_.echo->output_parameters = output.parameters();
  }
  return absl::OkStatus();
}

InferRequest ReadInferRequest(Slices message, const SharedMemoryOf& shared, bool on_stream) {
  InferRequest request;
  request.echo = std::make_shared<Echo>();
  request.echo->on_stream = on_stream;
  InferReader reader(message, shared, &request);
  if (absl::Status status = reader.Decode(); !status.ok()) {
    request.decodable = false;
    request.head = status;
  } else {
    request.head = reader.Read();
  }
  return request;
}

}  // namespace expertd::kserve
