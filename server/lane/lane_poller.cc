#include "server/lane/lane_poller.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

using Clock = std::chrono::steady_clock;

// While rings are busy, every so many looks at them the descriptors get one.
constexpr int kLooksBetweenEvents = 64;

}  // namespace

absl::StatusOr<std::unique_ptr<LanePoller>> LanePoller::Start(Handoff* handoff, std::chrono::microseconds spin) {
  Descriptor events(epoll_create1(EPOLL_CLOEXEC));
  Descriptor wake(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!events || !wake) {
    return absl::ResourceExhaustedError(absl::StrCat("fast lane: epoll, eventfd: ", std::strerror(errno)));
  }
  return std::unique_ptr<LanePoller>(new LanePoller(handoff, spin, std::move(events), std::move(wake)));
}

LanePoller::LanePoller(Handoff* handoff, std::chrono::microseconds spin, Descriptor events, Descriptor wake)
    : handoff_(handoff), spin_(spin), events_(std::move(events)), wake_(std::move(wake)) {
  WatchDescriptor(events_.get(), wake_.get(), EPOLLET);
  if (handoff_ != nullptr) WatchDescriptor(events_.get(), handoff_->descriptor());
  thread_ = std::thread([this] { Run(); });
}

LanePoller::~LanePoller() {
  stop_ = true;
  Wake();
  thread_.join();
}

void LanePoller::Add(std::shared_ptr<ServerRing> ring, RingHandler handler) {
  {
    MutexLock lock(mutex_);
    WatchDescriptor(events_.get(), ring->doorbell(), EPOLLET);
    auto ports = std::make_shared<Ports>(*ports_);
    ports->push_back(std::make_shared<Port>(Port{std::move(ring), std::move(handler)}));
    ports_ = std::move(ports);
  }
  Wake();
}

void LanePoller::Remove(const ServerRing* ring) {
  std::shared_ptr<const Ports> last;  // destroyed outside the lock
  {
    MutexLock lock(mutex_);
    auto ports = std::make_shared<Ports>(*ports_);
    if (std::erase_if(*ports, [ring](const auto& port) { return port->ring.get() == ring; }) == 0) return;
    epoll_ctl(events_.get(), EPOLL_CTL_DEL, ring->doorbell(), nullptr);
    last = std::exchange(ports_, std::move(ports));
  }
  Wake();  // while the thread sleeps it holds the rings that it found, and with them their memory
}

void LanePoller::Wake() {
  const std::uint64_t one = 1;
  // Cannot fill up before the thread has long been awake.
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));
}

std::shared_ptr<const LanePoller::Ports> LanePoller::Snapshot() const {
  MutexLock lock(mutex_);
  return ports_;
}

void LanePoller::Run() {
  Clock::time_point last = Clock::now();
  for (int looks = 0; !stop_; ++looks) {
    const std::shared_ptr<const Ports> ports = Snapshot();
    if (Look(*ports)) {
      last = Clock::now();
    } else if (!ports->empty() && Clock::now() - last < spin_) {
      lane::SpinPause();
    } else {
      Sleep(*ports);
      last = Clock::now();
    }
    if (looks % kLooksBetweenEvents == 0) HandleEvents(0);
  }
}

bool LanePoller::Look(const Ports& ports) {
  bool any = false;
  for (const std::shared_ptr<const Port>& port : ports) {
    const absl::StatusOr<bool> taken = port->ring->Take(&message_);
    if (!taken.ok()) {
      Remove(port->ring.get());
      port->handler.on_broken(taken.status());
    } else if (*taken) {
      any = true;
      port->handler.on_message(message_);
    }
  }
  return any;
}

void LanePoller::Sleep(const Ports& ports) {
  for (const auto& port : ports) port->ring->SetSleeping(true);
  // What came before the peer could know that it has to ring.
  if (!Look(ports)) HandleEvents(-1);
  for (const auto& port : ports) port->ring->SetSleeping(false);
}

void LanePoller::HandleEvents(int timeout_ms) {
  epoll_event events[16];
  const int count = epoll_wait(events_.get(), events, 16, timeout_ms);
  for (int i = 0; i < count; ++i) {
    if (handoff_ != nullptr && events[i].data.fd == handoff_->descriptor()) handoff_->Serve();
  }
}

}  // namespace expertd
