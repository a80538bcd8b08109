// Rings between our own client side and the poller, with and without peers that keep to the contract. The client works
// on the server's mapping, so that ThreadSanitizer sees both sides of the memory.
#include <gmock/gmock.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/cpp/ring_client.h"
#include "server/lane/lane_poller.h"

namespace expertd {
namespace {

using client::RingClient;
using ::testing::HasSubstr;

constexpr lane::RingGeometry kGeometry = {.slots = 4, .slot_bytes = 256};
constexpr std::chrono::seconds kLong{20};

// A ring and what its handler saw. Messages are answered with themselves: at once, or by `Later`.
class Peer {
 public:
  explicit Peer(LanePoller& poller, bool answer_later = false) : poller_(poller), answer_later_(answer_later) {
    const auto budget = std::make_shared<RegionBudget>("--fast-lane-mib", 1 << 20);
    const std::size_t bytes = kGeometry.bytes();
    ring_ = *ServerRing::Create(*Region::Create(budget, bytes, bytes), kGeometry);
    poller_.Add(ring_, {.on_message = [this](absl::string_view message) { Handle(message); },
                        .on_broken = [this](const absl::Status& reason) { Broken(reason); }});
  }
  ~Peer() {
    if (!closed_) Close([] {});
    Later();
    MutexLock lock(mutex_);
    while (!idle_) changed_.Wait(mutex_);
  }

  void Close(std::function<void()> on_idle) {
    closed_ = true;
    poller_.Remove(ring_.get());
    ring_->Close([this, on_idle = std::move(on_idle)] {
      on_idle();
      MutexLock lock(mutex_);
      idle_ = true;
      changed_.NotifyAll();
    });
  }

  RingClient Client(std::chrono::microseconds spin = {}) {
    return *RingClient::Attach(memory(), kGeometry.bytes(), ring_->doorbell(), spin);
  }
  std::byte* memory() { return ring_->region().data(); }
  lane::RingHeader& header() { return *reinterpret_cast<lane::RingHeader*>(memory()); }
  ServerRing& ring() { return *ring_; }

  // Answers what came, from this thread.
  void Later() {
    std::deque<std::string> waiting;
    {
      MutexLock lock(mutex_);
      waiting.swap(waiting_);
    }
    for (const std::string& message : waiting) ring_->Answer(message);
  }
  std::size_t waiting() {
    MutexLock lock(mutex_);
    return waiting_.size();
  }
  std::string AwaitBroken() {
    MutexLock lock(mutex_);
    while (broken_.empty()) {
      if (!changed_.WaitUntil(mutex_, std::chrono::steady_clock::now() + kLong)) break;
    }
    return broken_;
  }

 private:
  void Handle(absl::string_view message) {
    if (message == "cancel") return ring_->NoAnswer();
    if (!answer_later_) return ring_->Answer(message);
    MutexLock lock(mutex_);
    waiting_.emplace_back(message);
  }
  void Broken(const absl::Status& reason) {
    MutexLock lock(mutex_);
    broken_ = std::string(reason.message());
    changed_.NotifyAll();
  }

  LanePoller& poller_;
  const bool answer_later_;
  bool closed_ = false;
  std::shared_ptr<ServerRing> ring_;
  Mutex mutex_;
  CondVar changed_;
  bool idle_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<std::string> waiting_ ABSL_GUARDED_BY(mutex_);
  std::string broken_ ABSL_GUARDED_BY(mutex_);
};

class RingTest : public ::testing::TestWithParam<std::chrono::microseconds> {
 protected:
  const std::unique_ptr<LanePoller> poller_ = *LanePoller::Start(nullptr, GetParam());
};

TEST_P(RingTest, EveryMessageIsAnsweredAcrossManyTurnsOfTheCounters) {
  Peer peer(*poller_);
  RingClient client = peer.Client(GetParam());
  std::string answer;
  for (int i = 0; i < 500; ++i) {
    const std::string message = absl::StrCat("message ", i, std::string(static_cast<std::size_t>(i % 200), 'x'));
    ASSERT_TRUE(client.Send(message).ok());
    ASSERT_TRUE(client.Receive(kLong, &answer).ok());
    ASSERT_EQ(answer, message);
  }
  // As many as there are slots, and no more.
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(client.Send(absl::StrCat(i)).ok());
  EXPECT_EQ(client.Send("5").code(), absl::StatusCode::kResourceExhausted);
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(client.Receive(kLong, &answer).ok());
    EXPECT_EQ(answer, absl::StrCat(i));
  }
  EXPECT_EQ(client.Receive(std::chrono::milliseconds(1), &answer).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(client.Send(std::string(249, 'x')).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(RingTest, RingsOfManyThreadsDoNotDisturbEachOther) {
  constexpr int kPeers = 3, kMessages = 400;
  std::deque<Peer> peers;
  for (int i = 0; i < kPeers; ++i) peers.emplace_back(*poller_);
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kPeers; ++i) {
    threads.emplace_back([&, i] {
      RingClient client = peers[static_cast<std::size_t>(i)].Client(GetParam());
      std::string answer;
      int sent = 0, received = 0;
      while (received < kMessages) {
        while (sent < kMessages && client.Send(absl::StrCat(i, "/", sent)).ok()) ++sent;
        if (!client.Receive(kLong, &answer).ok()) return;
        if (answer == absl::StrCat(i, "/", received++)) ++right;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kPeers * kMessages);
}

TEST_P(RingTest, AnswersMayComeLaterAndFromOtherThreads) {
  Peer peer(*poller_, /*answer_later=*/true);
  RingClient client = peer.Client();
  std::atomic<bool> stop = false;
  std::thread answerer([&] {
    while (!stop) peer.Later();
  });
  std::string answer;
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(client.Send("cancel", /*wants_answer=*/false).ok());
    ASSERT_TRUE(client.Send(absl::StrCat(i)).ok());
    ASSERT_TRUE(client.Receive(kLong, &answer).ok());
    ASSERT_EQ(answer, absl::StrCat(i));
  }
  stop = true;
  answerer.join();
}

TEST_P(RingTest, ClosingLetsWhatWasTakenBeAnsweredAndThenSaysSo) {
  Peer peer(*poller_, /*answer_later=*/true);
  RingClient client = peer.Client();
  ASSERT_TRUE(client.Send("first").ok());
  while (peer.waiting() == 0) std::this_thread::yield();
  std::atomic<int> idle = 0;
  peer.Close([&] { ++idle; });
  ASSERT_TRUE(client.Send("too late").ok());
  EXPECT_EQ(idle, 0);
  peer.Later();
  EXPECT_EQ(idle, 1);
  std::string answer;
  ASSERT_TRUE(client.Receive(kLong, &answer).ok());
  EXPECT_EQ(answer, "first");
  EXPECT_EQ(client.Receive(kLong, &answer).code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(client.Send("x").code(), absl::StatusCode::kUnavailable);
}

TEST_P(RingTest, ASleepingPollerKeepsNoRingThatWasRemoved) {
  const auto budget = std::make_shared<RegionBudget>("--fast-lane-mib", 1 << 20);
  {
    const std::shared_ptr<ServerRing> ring =
        *ServerRing::Create(*Region::Create(budget, kGeometry.bytes(), kGeometry.bytes()), kGeometry);
    poller_->Add(ring, {});
    const auto& header = *reinterpret_cast<const lane::RingHeader*>(ring->region().data());
    while (header.server_sleeps.load() == 0) std::this_thread::yield();
    poller_->Remove(ring.get());
  }
  const auto deadline = std::chrono::steady_clock::now() + kLong;
  while (budget->in_use() != 0 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(budget->in_use(), 0u);
}

// Each does something to the shared memory that the contract forbids.
struct Misdeed {
  const char* name;
  void (*commit)(Peer& peer);
  const char* reason;
};
const Misdeed kMisdeeds[] = {
    {"tail_beyond_the_slots", [](Peer& p) { p.header().request_tail += 5; }, "request_tail leaves 5 messages"},
    {"tail_backwards", [](Peer& p) { p.header().request_tail -= 1; }, "request_tail leaves 4294967295 messages"},
    {"answers_taken_that_never_came",
     [](Peer& p) {
       p.header().answer_head += 1;
       p.header().request_tail += 1;
     },
     "answer_head leaves 4294967295 messages"},
    {"length_beyond_the_slot",
     [](Peer& p) {
       const std::uint32_t size = 249;
       std::memcpy(p.memory() + kGeometry.request_slot(0), &size, sizeof(size));
       p.header().request_tail += 1;
     },
     "a request of 249 bytes, a slot holds 248"},
    {"length_of_32_bits",
     [](Peer& p) {
       std::memset(p.memory() + kGeometry.request_slot(0), 0xff, 4);
       p.header().request_tail += 1;
     },
     "a request of 4294967295 bytes"},
};

TEST_P(RingTest, APeerThatBreaksItsRingLosesItAndNobodyElseNotices) {
  Peer neighbour(*poller_);
  RingClient client = neighbour.Client();
  for (const Misdeed& misdeed : kMisdeeds) {
    SCOPED_TRACE(misdeed.name);
    Peer culprit(*poller_);
    misdeed.commit(culprit);
    const std::uint64_t one = 1;
    ASSERT_EQ(write(culprit.ring().doorbell(), &one, sizeof(one)), 8);
    EXPECT_THAT(culprit.AwaitBroken(), HasSubstr(misdeed.reason));
    std::string answer;
    ASSERT_TRUE(client.Send(misdeed.name).ok());
    ASSERT_TRUE(client.Receive(kLong, &answer).ok());
    EXPECT_EQ(answer, misdeed.name);
  }
}

// The header's constants are for clients: a peer that overwrites them does not move the server's slots.
TEST_P(RingTest, TheServerGoesByItsOwnGeometry) {
  Peer peer(*poller_);
  RingClient client = peer.Client();
  peer.header().slots = 0x7fffffff;
  peer.header().slot_bytes = 0xffffffff;
  std::string answer;
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(client.Send("still here").ok());
    ASSERT_TRUE(client.Receive(kLong, &answer).ok());
    EXPECT_EQ(answer, "still here");
  }
  EXPECT_EQ(RingClient::Attach(peer.memory(), kGeometry.bytes(), 0, {}).status().code(), absl::StatusCode::kInternal);
}

// A peer that does not take its answers is not read from, and goes on when it has.
TEST_P(RingTest, AnswersThatAreNotTakenHoldTheRequestsBack) {
  Peer peer(*poller_);
  RingClient client = peer.Client();
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(client.Send(absl::StrCat(i)).ok());
  RingClient greedy = client;  // as if it had taken all answers
  while (peer.header().answer_tail.load() != 4) std::this_thread::yield();
  peer.header().request_tail += 1;
  std::string message;
  const absl::StatusOr<bool> taken = peer.ring().Take(&message);  // the first slot again: its request is still there
  ASSERT_TRUE(taken.ok()) << taken.status();
  EXPECT_FALSE(*taken);
  std::string answer;
  ASSERT_TRUE(greedy.Receive(kLong, &answer).ok());
  const std::uint64_t one = 1;
  ASSERT_EQ(write(peer.ring().doorbell(), &one, sizeof(one)), 8);
  for (int i = 0; i < 4; ++i) ASSERT_TRUE(greedy.Receive(kLong, &answer).ok());
  EXPECT_EQ(answer, "0");
}

INSTANTIATE_TEST_SUITE_P(SleepingAndSpinning, RingTest,
                         ::testing::Values(std::chrono::microseconds(0), std::chrono::microseconds(300)));

}  // namespace
}  // namespace expertd
