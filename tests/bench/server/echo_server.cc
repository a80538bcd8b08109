// wire_echo: the least that a server of this kind has to do, as the measure for expertd's own. The same raw callback
// methods, the same server arguments; every message is copied out of the transport's slices into one buffer and from
// there into another, which is the answer. Buffers come from a pool, as expertd's do.
//
//   wire_echo [CERT KEY]    prints "listening on 127.0.0.1:PORT", serves until a signal ends it; over TLS with two PEM
//                           files
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <deque>
#include <memory>
#include <vector>

#include "expertd/v1/expertd.grpc.pb.h"
#include "kernels/base/mutex.h"
#include "server/access/certificates.h"
#include "server/access/tls_credentials.h"
#include "server/listeners.h"

namespace {

using expertd::Mutex;
using expertd::MutexLock;
using grpc::ByteBuffer;

constexpr int kMaxMessageBytes = 256 << 20;

// Buffers by capacity class, reused without bound: the callers are few and closed-loop.
class Pool {
 public:
  struct Buffer {
    explicit Buffer(std::size_t capacity) : bytes(new char[capacity]), capacity(capacity) {}
    std::unique_ptr<char[]> bytes;
    std::size_t capacity;
  };

  std::unique_ptr<Buffer> Take(std::size_t size) {
    {
      MutexLock lock(mutex_);
      for (auto& buffer : free_) {
        if (buffer->capacity < size || buffer->capacity > 2 * size) continue;
        std::swap(buffer, free_.back());
        std::unique_ptr<Buffer> taken = std::move(free_.back());
        free_.pop_back();
        return taken;
      }
    }
    return std::make_unique<Buffer>(size);
  }

  void Give(std::unique_ptr<Buffer> buffer) {
    MutexLock lock(mutex_);
    free_.push_back(std::move(buffer));
  }

 private:
  Mutex mutex_;
  std::vector<std::unique_ptr<Buffer>> free_ ABSL_GUARDED_BY(mutex_);
};

Pool& pool() {
  static Pool* const instance = new Pool;  // outlives the last slice
  return *instance;
}

// One copy in, one copy out.
ByteBuffer Echo(const ByteBuffer& request) {
  std::vector<grpc::Slice> slices;
  if (!request.Dump(&slices).ok()) return {};
  const std::size_t size = request.Length();
  auto in = pool().Take(size);
  auto out = pool().Take(size);
  char* to = in->bytes.get();
  for (const grpc::Slice& slice : slices) {
    std::memcpy(to, slice.begin(), slice.size());
    to += slice.size();
  }
  std::memcpy(out->bytes.get(), in->bytes.get(), size);
  pool().Give(std::move(in));
  Pool::Buffer* sent = out.release();
  const grpc::Slice slice(
      sent->bytes.get(), size,
      [](void* buffer) { pool().Give(std::unique_ptr<Pool::Buffer>(static_cast<Pool::Buffer*>(buffer))); }, sent);
  return ByteBuffer(&slice, 1);
}

// Reads on while answers are being written, as expertd's stream does.
class EchoStream final : public grpc::ServerBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  EchoStream() { StartRead(&request_); }

 private:
  void OnReadDone(bool ok) override {
    ByteBuffer answer = ok ? Echo(request_) : ByteBuffer();
    MutexLock lock(mutex_);
    if (!ok) {
      reading_ = false;
      return FinishWhenIdle();
    }
    answers_.push_back(std::move(answer));
    if (!writing_) Write();
    request_.Clear();
    StartRead(&request_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    answers_.pop_front();
    writing_ = false;
    if (!ok) answers_.clear();
    if (!answers_.empty()) Write();
    FinishWhenIdle();
  }

  void OnDone() override { delete this; }

  void Write() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    writing_ = true;
    StartWrite(&answers_.front());
  }

  void FinishWhenIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!reading_ && !writing_ && answers_.empty()) Finish(grpc::Status::OK);
  }

  ByteBuffer request_;
  Mutex mutex_;
  std::deque<ByteBuffer> answers_ ABSL_GUARDED_BY(mutex_);
  bool reading_ ABSL_GUARDED_BY(mutex_) = true;
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
};

using Base = expertd::v1::Expertd::WithRawCallbackMethod_Forward<
    expertd::v1::Expertd::WithRawCallbackMethod_ForwardStream<expertd::v1::Expertd::Service>>;

class EchoService final : public Base {
  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const ByteBuffer* request,
                                    ByteBuffer* response) override {
    *response = Echo(*request);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerBidiReactor<ByteBuffer, ByteBuffer>* ForwardStream(grpc::CallbackServerContext*) override {
    return new EchoStream;
  }
};

}  // namespace

int main(int argc, char** argv) {
  EchoService service;
  expertd::GrpcListenerOptions options = {.address = "127.0.0.1:0", .max_message_bytes = kMaxMessageBytes};
  if (argc == 3) {
    const auto certificates = expertd::OpenCertificates({.cert = argv[1], .key = argv[2], .client_ca = {}});
    if (!certificates.ok()) return 1;
    options.credentials = expertd::TlsCredentials(*certificates);
  }
  const auto listener = expertd::Listen(options, {&service});
  if (!listener.ok()) return 1;
  std::printf("listening on %s\n", listener->address.c_str());
  std::fflush(stdout);
  for (;;) pause();  // until a signal ends the process
}
