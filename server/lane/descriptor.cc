#include "server/lane/descriptor.h"

#include <sys/epoll.h>
#include <unistd.h>

namespace expertd {

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = other.Release();
  }
  return *this;
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) close(fd_);
}

void WatchDescriptor(int events, int fd, std::uint32_t flags) {
  epoll_event event = {};
  event.events = EPOLLIN | flags;
  event.data.fd = fd;
  epoll_ctl(events, EPOLL_CTL_ADD, fd, &event);
}

}  // namespace expertd
