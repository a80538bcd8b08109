// File descriptors that are owned, and a look-out for many of them.
#pragma once

#include <cstdint>

namespace expertd {

// A file descriptor, closed when destroyed. Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int Release() {
    const int fd = fd_;
    fd_ = -1;
    return fd;
  }

 private:
  int fd_ = -1;
};

// Adds `fd` to the epoll `events`, for EPOLLIN and what else `flags` say; its events carry the number.
void WatchDescriptor(int events, int fd, std::uint32_t flags = 0);

}  // namespace expertd
