#include "client/cpp/program/rows_file.h"

#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace expertd::client {
namespace {

absl::Status Wrong(const SafetensorsFile& file, absl::string_view tensor, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat(file.name(), ": tensor ", tensor, ": ", reason));
}

// i32 bytes from i32 or i64 elements. False when one does not fit.
bool ToInt32(const TensorEntry& ids, std::string& out) {
  const std::int64_t count = ids.bytes / BytesOf(ids.dtype, 1);
  for (std::int64_t i = 0; i < count; ++i) {
    std::int64_t wide = 0;
    std::int32_t id = 0;
    if (ids.dtype == DType::kI64) {
      std::memcpy(&wide, ids.data + i * 8, 8);
      if (wide < std::numeric_limits<std::int32_t>::min() || wide > std::numeric_limits<std::int32_t>::max())
        return false;
      id = static_cast<std::int32_t>(wide);
    } else {
      std::memcpy(&id, ids.data + i * 4, 4);
    }
    out.append(reinterpret_cast<const char*>(&id), sizeof(id));
  }
  return true;
}

absl::Span<const std::byte> Bytes(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace

absl::StatusOr<RowsFile> RowsFile::Open(const std::string& path) {
  auto file = SafetensorsFile::Open(path);
  if (!file.ok()) return file.status();
  RowsFile rows;
  rows.file_ = *std::move(file);
  const TensorEntry* hidden = rows.hidden_states_ = rows.file_->Find("hidden_states");
  if (hidden == nullptr) return Wrong(*rows.file_, "hidden_states", "missing");
  if (hidden->shape.size() != 2)
    return Wrong(*rows.file_, "hidden_states",
                 absl::StrCat("shape ", ShapeText(hidden->shape), " is not [rows, hidden]"));
  if (hidden->dtype != DType::kBF16 && hidden->dtype != DType::kF32) {
    return Wrong(*rows.file_, "hidden_states", absl::StrCat(DTypeName(hidden->dtype), " is neither bf16 nor f32"));
  }
  rows.rows_ = hidden->shape[0];
  rows.hidden_size_ = hidden->shape[1];
  rows.dtype_ = hidden->dtype == DType::kF32 ? v1::DTYPE_F32 : v1::DTYPE_BF16;
  if (const absl::Status status = rows.ReadRouting(); !status.ok()) return status;
  return rows;
}

absl::Status RowsFile::ReadRouting() {
  const TensorEntry* ids = file_->Find("topk_ids");
  const TensorEntry* weights = file_->Find("topk_weights");
  if (ids == nullptr && weights == nullptr) return absl::OkStatus();
  if (ids == nullptr) return Wrong(*file_, "topk_ids", "missing beside topk_weights");
  if (weights == nullptr) return Wrong(*file_, "topk_weights", "missing beside topk_ids");
  if (ids->dtype != DType::kI32 && ids->dtype != DType::kI64) {
    return Wrong(*file_, "topk_ids", absl::StrCat(DTypeName(ids->dtype), " is neither i32 nor i64"));
  }
  if (weights->dtype != DType::kF32) {
    return Wrong(*file_, "topk_weights", absl::StrCat(DTypeName(weights->dtype), " is not f32"));
  }
  if (ids->shape.size() != 2 || ids->shape[0] != rows_ || ids->shape[1] < 1) {
    return Wrong(*file_, "topk_ids", absl::StrCat("shape ", ShapeText(ids->shape), " is not [", rows_, ", k]"));
  }
  if (weights->shape != ids->shape) {
    return Wrong(
        *file_, "topk_weights",
        absl::StrCat("shape ", ShapeText(weights->shape), " is not that of topk_ids, ", ShapeText(ids->shape)));
  }
  if (!ToInt32(*ids, topk_ids_)) return Wrong(*file_, "topk_ids", "an id does not fit 32 bits");
  topk_weights_.assign(reinterpret_cast<const char*>(weights->data), static_cast<std::size_t>(weights->bytes));
  k_ = ids->shape[1];
  return absl::OkStatus();
}

Request RowsFile::Rows(std::int64_t first, std::int64_t count) const {
  Request request;
  request.head.set_rows(count);
  request.head.set_dtype(dtype_);
  if (k_ > 0) {
    const auto begin = static_cast<std::size_t>(first * k_ * 4), size = static_cast<std::size_t>(count * k_ * 4);
    request.head.mutable_routing()->set_k(static_cast<std::uint32_t>(k_));
    request.head.mutable_routing()->set_topk_ids(topk_ids_.substr(begin, size));
    request.head.mutable_routing()->set_topk_weights(topk_weights_.substr(begin, size));
  }
  const std::int64_t row_bytes = BytesOf(hidden_states_->dtype, hidden_size_);
  using Holder = std::shared_ptr<const SafetensorsFile>;
  request.hidden_states = grpc::Slice(
      const_cast<std::byte*>(hidden_states_->data) + first * row_bytes, static_cast<std::size_t>(count * row_bytes),
      [](void* holder) { delete static_cast<Holder*>(holder); }, new Holder(file_));
  return request;
}

void AnswersFile::Add(const Answer& answer) {
  const v1::ForwardResult& result = answer.result();
  dtype_ = result.dtype();
  output_ += answer.OutputString();
  k_ = result.routing().k();
  topk_ids_ += result.routing().topk_ids();
  topk_weights_ += result.routing().topk_weights();
}

absl::Status AnswersFile::Write(std::int64_t rows, std::int64_t hidden_size) const {
  struct Part {
    TensorInfo info;
    const std::string& bytes;
  };
  std::vector<Part> parts = {
      {{"output", dtype_ == v1::DTYPE_F32 ? DType::kF32 : DType::kBF16, {rows, hidden_size}}, output_}};
  if (k_ > 0) {
    parts.push_back({{"topk_ids", DType::kI32, {rows, k_}}, topk_ids_});
    parts.push_back({{"topk_weights", DType::kF32, {rows, k_}}, topk_weights_});
  }
  std::vector<TensorInfo> infos;
  for (const Part& part : parts) {
    if (static_cast<std::size_t>(part.info.bytes()) != part.bytes.size()) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": ", part.info.name, ": the answers hold ",
                                                     part.bytes.size(), " bytes, ", ShapeText(part.info.shape),
                                                     " wants ", part.info.bytes()));
    }
    infos.push_back(part.info);
  }
  auto writer = SafetensorsWriter::Create(path_, infos);
  if (!writer.ok()) return writer.status();
  for (std::size_t i = 0; i < parts.size(); ++i) {
    if (const absl::Status status = (*writer)->Write(i, 0, Bytes(parts[i].bytes)); !status.ok()) return status;
  }
  return (*writer)->Finish();
}

}  // namespace expertd::client
