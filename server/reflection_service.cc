#include "server/reflection_service.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>

#include <set>
#include <utility>

#include "absl/status/status.h"
#include "server/grpc_status.h"

namespace expertd {
namespace {

namespace pb = google::protobuf;

// Everything that this program was compiled with.
const pb::DescriptorPool& Pool() { return *pb::DescriptorPool::generated_pool(); }

void AddFile(const pb::FileDescriptor& file, std::set<std::string>* seen, reflection::FileDescriptorResponse* out) {
  if (!seen->insert(file.name()).second) return;
  pb::FileDescriptorProto proto;
  file.CopyTo(&proto);
  out->add_file_descriptor_proto(proto.SerializeAsString());
  for (int i = 0; i < file.dependency_count(); ++i) AddFile(*file.dependency(i), seen, out);
}

void AnswerFile(const pb::FileDescriptor* file, reflection::ServerReflectionResponse* out) {
  if (file == nullptr) {
    out->mutable_error_response()->set_error_code(grpc::StatusCode::NOT_FOUND);
    out->mutable_error_response()->set_error_message("not known here");
    return;
  }
  std::set<std::string> seen;
  AddFile(*file, &seen, out->mutable_file_descriptor_response());
}

const pb::FileDescriptor* FileOfExtension(const reflection::ExtensionRequest& request) {
  const pb::Descriptor* type = Pool().FindMessageTypeByName(request.containing_type());
  const pb::FieldDescriptor* field =
      type != nullptr ? Pool().FindExtensionByNumber(type, request.extension_number()) : nullptr;
  return field != nullptr ? field->file() : nullptr;
}

void AnswerExtensions(const std::string& name, reflection::ServerReflectionResponse* out) {
  const pb::Descriptor* type = Pool().FindMessageTypeByName(name);
  if (type == nullptr) return AnswerFile(nullptr, out);
  std::vector<const pb::FieldDescriptor*> fields;
  Pool().FindAllExtensions(type, &fields);
  out->mutable_all_extension_numbers_response()->set_base_type_name(name);
  for (const pb::FieldDescriptor* field : fields) {
    out->mutable_all_extension_numbers_response()->add_extension_number(field->number());
  }
}

reflection::ServerReflectionResponse Answer(const reflection::ServerReflectionRequest& request,
                                            const std::vector<std::string>& services) {
  using Request = reflection::ServerReflectionRequest;
  reflection::ServerReflectionResponse response;
  response.set_valid_host(request.host());
  *response.mutable_original_request() = request;
  switch (request.message_request_case()) {
    case Request::kFileByFilename:
      AnswerFile(Pool().FindFileByName(request.file_by_filename()), &response);
      break;
    case Request::kFileContainingSymbol:
      AnswerFile(Pool().FindFileContainingSymbol(request.file_containing_symbol()), &response);
      break;
    case Request::kFileContainingExtension:
      AnswerFile(FileOfExtension(request.file_containing_extension()), &response);
      break;
    case Request::kAllExtensionNumbersOfType:
      AnswerExtensions(request.all_extension_numbers_of_type(), &response);
      break;
    case Request::kListServices:
      for (const std::string& name : services) response.mutable_list_services_response()->add_service()->set_name(name);
      break;
    case Request::MESSAGE_REQUEST_NOT_SET:
      response.mutable_error_response()->set_error_code(grpc::StatusCode::INVALID_ARGUMENT);
      response.mutable_error_response()->set_error_message("nothing is asked");
      break;
  }
  return response;
}

}  // namespace

// One stream: reads and answers in turn. Owns itself.
class ReflectionService::Session
    : public grpc::ServerBidiReactor<reflection::ServerReflectionRequest, reflection::ServerReflectionResponse> {
 public:
  explicit Session(const std::vector<std::string>& services) : services_(services) { StartRead(&request_); }
  explicit Session(const grpc::Status& refusal) { Finish(refusal); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    response_ = Answer(request_, services_);
    StartWrite(&response_);
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish(grpc::Status::OK);
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

  const std::vector<std::string> services_;
  reflection::ServerReflectionRequest request_;
  reflection::ServerReflectionResponse response_;
};

grpc::ServerBidiReactor<reflection::ServerReflectionRequest, reflection::ServerReflectionResponse>*
ReflectionService::ServerReflectionInfo(grpc::CallbackServerContext* context) {
  if (!open_) {
    if (const auto caller = access_.Admit(*context, Role::kAdmin); !caller.ok()) {
      return new Session(ToGrpcStatus(caller.status(), context));
    }
  }
  return new Session(services_);
}

}  // namespace expertd
