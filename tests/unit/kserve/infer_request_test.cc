#include "server/kserve/infer_request.h"

#include <gmock/gmock.h>

#include <cstring>

#include "tests/unit/kserve/shm_object.h"

namespace expertd::kserve {
namespace {

using inference::ModelInferRequest;
using ::testing::HasSubstr;
using testing::ShmObject;
using Tensor = ModelInferRequest::InferInputTensor;

Tensor* AddInput(ModelInferRequest* request, const std::string& name, const std::string& datatype, std::int64_t rows,
                 std::int64_t columns) {
  Tensor* tensor = request->add_inputs();
  tensor->set_name(name);
  tensor->set_datatype(datatype);
  tensor->add_shape(rows);
  tensor->add_shape(columns);
  return tensor;
}

// Rows [2, 4] of bytes that tell where they come from, and nothing else.
ModelInferRequest RawRequest() {
  ModelInferRequest request;
  request.set_model_name("family/model/7");
  request.set_id("id");
  AddInput(&request, "hidden_states", "BF16", 2, 4);
  request.add_raw_input_contents("0123456789abcdef");
  return request;
}

ModelInferRequest RoutedRequest() {
  ModelInferRequest request = RawRequest();
  AddInput(&request, "topk_ids", "INT32", 2, 1);
  AddInput(&request, "topk_weights", "FP32", 2, 1);
  request.add_raw_input_contents("idididid");
  request.add_raw_input_contents("wgtswgts");
  return request;
}

ModelInferRequest TypedRequest() {
  ModelInferRequest request = RawRequest();
  request.clear_raw_input_contents();
  request.mutable_inputs(0)->set_datatype("FP32");
  for (int i = 0; i < 8; ++i) request.mutable_inputs(0)->mutable_contents()->add_fp32_contents(static_cast<float>(i));
  return request;
}

// A request as read, with what it refers to.
struct Parsed {
  std::string bytes;
  std::vector<absl::string_view> slices;
  InferRequest request;

  std::string Field(WireRange range) const {
    std::string out(range.size, '\0');
    Gather(request.payload, range, reinterpret_cast<std::byte*>(out.data()));
    return out;
  }
};

std::unique_ptr<Parsed> Parse(std::string bytes, const SharedMemoryOf& shared = {}, std::size_t slice_bytes = 1 << 20) {
  auto parsed = std::make_unique<Parsed>();
  parsed->bytes = std::move(bytes);
  const absl::string_view all = parsed->bytes;
  for (std::size_t at = 0; at < all.size(); at += slice_bytes) parsed->slices.push_back(all.substr(at, slice_bytes));
  parsed->request = ReadInferRequest(parsed->slices, shared, /*on_stream=*/false);
  return parsed;
}

std::unique_ptr<Parsed> Parse(const ModelInferRequest& request, const SharedMemoryOf& shared = {}) {
  return Parse(request.SerializeAsString(), shared);
}

TEST(InferRequestTest, RawContentsStayWhereTheyAre) {
  const std::string bytes = RoutedRequest().SerializeAsString();
  for (std::size_t slice_bytes = 1; slice_bytes <= bytes.size(); ++slice_bytes) {
    const auto parsed = Parse(bytes, {}, slice_bytes);
    ASSERT_TRUE(parsed->request.head.ok()) << parsed->request.head.status();
    const ForwardHead& head = *parsed->request.head;
    EXPECT_EQ(head.model, "family/model");
    EXPECT_EQ(head.layer, 7u);
    EXPECT_EQ(head.rows, 2);
    EXPECT_EQ(head.dtype, DType::kBF16);
    EXPECT_EQ(head.output_dtype, DType::kBF16);
    EXPECT_TRUE(head.pre_routed);
    EXPECT_EQ(head.k, 1);
    EXPECT_EQ(parsed->Field(head.hidden_states), "0123456789abcdef");
    EXPECT_EQ(parsed->Field(head.topk_ids), "idididid");
    EXPECT_EQ(parsed->Field(head.topk_weights), "wgtswgts");
    ASSERT_EQ(parsed->request.payload.size(), parsed->slices.size()) << "nothing was copied";
  }
}

TEST(InferRequestTest, TypedContents) {
  ModelInferRequest request = TypedRequest();
  AddInput(&request, "topk_ids", "INT32", 2, 1)->mutable_contents()->add_int_contents(5);
  request.mutable_inputs(1)->mutable_contents()->add_int_contents(-1);
  AddInput(&request, "topk_weights", "FP32", 2, 1)->mutable_contents()->add_fp32_contents(0.5f);
  request.mutable_inputs(2)->mutable_contents()->add_fp32_contents(0.25f);
  const auto parsed = Parse(request);
  ASSERT_TRUE(parsed->request.head.ok()) << parsed->request.head.status();
  const ForwardHead& head = *parsed->request.head;
  const float rows[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const std::int32_t ids[2] = {5, -1};
  const float weights[2] = {0.5f, 0.25f};
  EXPECT_EQ(head.dtype, DType::kF32);
  EXPECT_EQ(parsed->Field(head.hidden_states), std::string(reinterpret_cast<const char*>(rows), sizeof(rows)));
  EXPECT_EQ(parsed->Field(head.topk_ids), std::string(reinterpret_cast<const char*>(ids), sizeof(ids)));
  EXPECT_EQ(parsed->Field(head.topk_weights), std::string(reinterpret_cast<const char*>(weights), sizeof(weights)));
}

TEST(InferRequestTest, NoRows) {
  for (const bool raw : {false, true}) {
    ModelInferRequest request;
    request.set_model_name("m/0");
    AddInput(&request, "hidden_states", "BF16", 0, 4);
    if (raw) request.add_raw_input_contents();
    const auto parsed = Parse(request);
    ASSERT_TRUE(parsed->request.head.ok()) << parsed->request.head.status();
    EXPECT_EQ(parsed->request.head->rows, 0);
    EXPECT_EQ(parsed->request.head->hidden_states.size, 0u);
  }
}

TEST(InferRequestTest, Parameters) {
  ModelInferRequest request = RawRequest();
  auto& parameters = *request.mutable_parameters();
  parameters["timeout"].set_int64_param(1234);
  parameters["priority"].set_uint64_param(1);
  parameters["shared_expert"].set_bool_param(false);
  parameters["expected_fingerprint"].set_string_param("abc");
  parameters["triton_enable_empty_final_response"].set_bool_param(true);
  auto parsed = Parse(request);
  ASSERT_TRUE(parsed->request.head.ok()) << parsed->request.head.status();
  EXPECT_EQ(parsed->request.head->timeout_us, 1234u);
  EXPECT_EQ(parsed->request.head->priority, 9) << "1 is the protocol's most urgent";
  EXPECT_EQ(parsed->request.head->shared_expert, false);
  EXPECT_EQ(parsed->request.head->expected_fingerprint, "abc");
  parameters["priority"].set_uint64_param(9);
  EXPECT_EQ(Parse(request)->request.head->priority, 1);
  parameters["priority"].set_uint64_param(0);
  EXPECT_EQ(Parse(request)->request.head->priority, 0);
}

struct Refusal {
  const char* reason;
  void (*spoil)(ModelInferRequest* request);
  ModelInferRequest (*good)() = RawRequest;
};

constexpr std::int64_t kHuge = std::int64_t{1} << 62;

const Refusal kRefusals[] = {
    {"inputs: hidden_states is missing", [](auto* r) { r->clear_inputs(), r->clear_raw_input_contents(); }},
    {"inputs: 'rows' is none of hidden_states, topk_ids, topk_weights",
     [](auto* r) { r->mutable_inputs(0)->set_name("rows"); }},
    {"hidden_states: given twice",
     [](auto* r) { *r->add_inputs() = r->inputs(0), r->add_raw_input_contents(std::string("x")); }},
    {"hidden_states: datatype 'FP16' is none of FP32, BF16",
     [](auto* r) { r->mutable_inputs(0)->set_datatype("FP16"); }},
    {"topk_ids: datatype 'INT64' is none of INT32", [](auto* r) { r->mutable_inputs(1)->set_datatype("INT64"); },
     RoutedRequest},
    {"hidden_states: shape [2,4,1] must be two", [](auto* r) { r->mutable_inputs(0)->add_shape(1); }},
    {"hidden_states: shape [2,-4] must be two", [](auto* r) { r->mutable_inputs(0)->set_shape(1, -4); }},
    {"is beyond 9223372036854775807 bytes", [](auto* r) { r->mutable_inputs(0)->set_shape(0, kHuge); }},
    {"hidden_states: 16 bytes do not hold shape [2,5] x BF16 (20 bytes)",
     [](auto* r) { r->mutable_inputs(0)->set_shape(1, 5); }},
    {"hidden_states: 32 bytes do not hold shape [2,5] x FP32 (40",
     [](auto* r) { r->mutable_inputs(0)->set_shape(1, 5); }, TypedRequest},
    {"raw_input_contents: 2 given, the inputs need 1", [](auto* r) { r->add_raw_input_contents(std::string("x")); }},
    {"raw_input_contents: 2 given, topk_weights needs one more",
     [](auto* r) { r->mutable_raw_input_contents()->RemoveLast(); }, RoutedRequest},
    {"hidden_states: contents given beside raw_input_contents",
     [](auto* r) { r->add_raw_input_contents(std::string("x")); }, TypedRequest},
    {"hidden_states: contents: BF16 comes in raw", [](auto* r) { r->mutable_inputs(0)->set_datatype("BF16"); },
     TypedRequest},
    {"topk_ids and topk_weights come together",
     [](auto* r) { r->mutable_inputs()->RemoveLast(), r->mutable_raw_input_contents()->RemoveLast(); }, RoutedRequest},
    {"topk_ids: shape [1,2] must be [2,2]",
     [](auto* r) { r->mutable_inputs(1)->set_shape(0, 1), r->mutable_inputs(1)->set_shape(1, 2); }, RoutedRequest},
    {"topk_weights: shape [1,2] must be [2,1]",
     [](auto* r) { r->mutable_inputs(2)->set_shape(0, 1), r->mutable_inputs(2)->set_shape(1, 2); }, RoutedRequest},
    {"outputs: 'logits' is not 'output'", [](auto* r) { r->add_outputs()->set_name("logits"); }},
    {"outputs: 2 asked for", [](auto* r) { r->add_outputs(), r->add_outputs(); }},
    {"output: classification",
     [](auto* r) {
       r->add_outputs()->set_name("output"),
           (*r->mutable_outputs(0)->mutable_parameters())["classification"].set_int64_param(3);
     }},
    {"parameters: 'sequence_id' is none of timeout, priority",
     [](auto* r) { (*r->mutable_parameters())["sequence_id"].set_int64_param(3); }},
    {"priority: 10 is not in 0..9", [](auto* r) { (*r->mutable_parameters())["priority"].set_uint64_param(10); }},
    {"timeout: must be a whole number", [](auto* r) { (*r->mutable_parameters())["timeout"].set_int64_param(-1); }},
    {"timeout: must be a whole number", [](auto* r) { (*r->mutable_parameters())["timeout"].set_string_param("1"); }},
    {"shared_expert: must be a bool", [](auto* r) { (*r->mutable_parameters())["shared_expert"].set_int64_param(1); }},
    {"expected_fingerprint: must be a string",
     [](auto* r) { (*r->mutable_parameters())["expected_fingerprint"].set_int64_param(1); }},
    {"needs --kserve-shared-memory",
     [](auto* r) { (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("r"); }},
};

TEST(InferRequestTest, WhatIsWrongIsNamed) {
  for (const Refusal& refusal : kRefusals) {
    ModelInferRequest request = refusal.good();
    ASSERT_TRUE(Parse(request)->request.head.ok());
    refusal.spoil(&request);
    const auto parsed = Parse(request);
    EXPECT_EQ(parsed->request.head.status().code(), absl::StatusCode::kInvalidArgument) << refusal.reason;
    EXPECT_THAT(parsed->request.head.status().message(), HasSubstr(refusal.reason));
    EXPECT_TRUE(parsed->request.decodable);
    EXPECT_EQ(parsed->request.echo->id, "id");
  }
}

TEST(InferRequestTest, NamesOfModels) {
  for (const char* name : {"", "model", "model/", "model/x", "model/-1", "model/4294967296", "/0"}) {
    EXPECT_EQ(ParseModelName(name, "").status().code(), absl::StatusCode::kNotFound) << name;
  }
  EXPECT_EQ(ParseModelName("a/b/3", "1")->model, "a/b");
  EXPECT_THAT(ParseModelName("a/3", "2").status().message(), HasSubstr("version '2'"));
}

TEST(InferRequestTest, WhatIsNoMessageIsNotDecodable) {
  const std::string good = RoutedRequest().SerializeAsString();
  for (const std::string& bad : {good.substr(0, good.size() - 1), good.substr(0, 3), std::string("\x0f", 1),
                                 std::string("\x0a\x02\xff\xff", 4)}) {  // the last: a name that is not UTF-8
    const auto parsed = Parse(bad);
    EXPECT_FALSE(parsed->request.decodable);
    EXPECT_EQ(parsed->request.head.status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// RawRequest with its rows, and the place of its output, in a region of 64 bytes.
ModelInferRequest SharedRequest() {
  ModelInferRequest request = RawRequest();
  request.clear_raw_input_contents();
  auto& input = *request.mutable_inputs(0)->mutable_parameters();
  input["shared_memory_region"].set_string_param("region");
  input["shared_memory_byte_size"].set_int64_param(16);
  input["shared_memory_offset"].set_int64_param(8);
  request.add_outputs()->set_name("output");
  auto& output = *request.mutable_outputs(0)->mutable_parameters();
  output["shared_memory_region"].set_string_param("region");
  output["shared_memory_byte_size"].set_uint64_param(20);
  output["shared_memory_offset"].set_uint64_param(40);
  return request;
}

class SharedRequestTest : public ::testing::Test {
 protected:
  SharedRequestTest() {
    object_.Put(8, "0123456789abcdef");
    EXPECT_TRUE(memory_.Register("me", {"region", object_.key(), 0, 64}).ok());
  }

  ShmObject object_{64};
  SharedMemory memory_;
  const SharedMemoryOf shared_ = {&memory_, "me", 1 << 20};
};

TEST_F(SharedRequestTest, RowsAreCopiedAndTheOutputIsDelivered) {
  const auto parsed = Parse(SharedRequest(), shared_);
  ASSERT_TRUE(parsed->request.head.ok()) << parsed->request.head.status();
  object_.Put(8, "################");  // too late to change what was checked
  EXPECT_EQ(parsed->Field(parsed->request.head->hidden_states), "0123456789abcdef");

  const AnswerForm form = FormOf(parsed->request.echo);
  const std::string output = "fedcba9876543210";
  ASSERT_TRUE(form.deliver({reinterpret_cast<const std::byte*>(output.data()), output.size()}).ok());
  EXPECT_EQ(object_.Get(40, 16), output);
  inference::ModelInferResponse response;
  ASSERT_TRUE(response.ParseFromString(form.encode({.rows = 2, .dtype = DType::kBF16}, 16)));
  EXPECT_EQ(response.outputs(0).parameters().at("shared_memory_region").string_param(), "region");
  EXPECT_EQ(response.outputs(0).parameters().at("shared_memory_byte_size").int64_param(), 16);
  ASSERT_EQ(response.raw_output_contents_size(), 1);
  EXPECT_EQ(response.raw_output_contents(0), "");
}

TEST_F(SharedRequestTest, WhatDoesNotFitIsRefused) {
  const struct {
    const char* reason;
    void (*spoil)(ModelInferRequest* request);
  } refusals[] = {
      {"shared_memory_byte_size: missing",
       [](auto* r) { r->mutable_inputs(0)->mutable_parameters()->erase("shared_memory_byte_size"); }},
      {"shared_memory_region must be a string",
       [](auto* r) { (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_int64_param(1); }},
      {"'other' is not registered",
       [](auto* r) {
         (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("other");
       }},
      {"has 64 bytes, not shared_memory_offset 49",
       [](auto* r) { (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_offset"].set_int64_param(49); }},
      {"shared_memory_offset: must be a whole number",
       [](auto* r) { (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_offset"].set_int64_param(-1); }},
      {"15 bytes do not hold shape [2,4]",
       [](auto* r) { (*r->mutable_inputs(0)->mutable_parameters())["shared_memory_byte_size"].set_int64_param(15); }},
      {"output: shared_memory_byte_size 15 is less than the 16",
       [](auto* r) { (*r->mutable_outputs(0)->mutable_parameters())["shared_memory_byte_size"].set_int64_param(15); }},
      {"contents given beside shared_memory_region",
       [](auto* r) { r->mutable_inputs(0)->mutable_contents()->add_fp32_contents(1); }},
      {"raw_input_contents: 1 given, the inputs need 0",
       [](auto* r) { r->add_raw_input_contents("0123456789abcdef"); }},
  };
  for (const auto& [reason, spoil] : refusals) {
    ModelInferRequest request = SharedRequest();
    spoil(&request);
    const absl::Status status = Parse(request, shared_)->request.head.status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << reason;
    EXPECT_THAT(status.message(), HasSubstr(reason));
  }
  const SharedMemoryOf small = {&memory_, "me", 15};
  EXPECT_THAT(Parse(SharedRequest(), small)->request.head.status().message(), HasSubstr("a request may have 15"));
  const SharedMemoryOf other = {&memory_, "you", 1 << 20};
  EXPECT_THAT(Parse(SharedRequest(), other)->request.head.status().message(), HasSubstr("not registered"));
  object_.Resize(10);
  EXPECT_EQ(Parse(SharedRequest(), shared_)->request.head.status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(InferAnswerTest, TheOutputFollowsTheMessage) {
  for (const bool on_stream : {false, true}) {
    for (const std::int64_t rows : {0, 2}) {
      auto echo = std::make_shared<Echo>();
      echo->model_name = "m/0";
      echo->id = "id";
      echo->on_stream = on_stream;
      echo->hidden_size = 4;
      const std::string output(static_cast<std::size_t>(rows * 4 * 2), 'x');
      const ResponseHead head = {.rows = rows, .dtype = DType::kBF16, .batch_rows = 9, .fingerprint = "print"};
      const std::string bytes = FormOf(echo).encode(head, output.size()) + output;
      inference::ModelStreamInferResponse message;
      ASSERT_TRUE(on_stream ? message.ParseFromString(bytes)
                            : message.mutable_infer_response()->ParseFromString(bytes));
      const inference::ModelInferResponse& response = message.infer_response();
      EXPECT_EQ(response.id(), "id");
      EXPECT_EQ(response.parameters().at("batch_rows").int64_param(), 9);
      EXPECT_EQ(response.parameters().at("fingerprint").string_param(), "print");
      EXPECT_EQ(response.parameters().count("triton_final_response"), on_stream ? 1u : 0u);
      EXPECT_EQ(response.outputs(0).datatype(), "BF16");
      EXPECT_THAT(response.outputs(0).shape(), ::testing::ElementsAre(rows, 4));
      ASSERT_EQ(response.raw_output_contents_size(), 1);
      EXPECT_EQ(response.raw_output_contents(0), output);
    }
  }
}

}  // namespace
}  // namespace expertd::kserve
