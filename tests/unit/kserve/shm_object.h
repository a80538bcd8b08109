// A POSIX shared memory object as a caller would make it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace expertd::testing {

class ShmObject {
 public:
  explicit ShmObject(std::size_t size) : key_(absl::StrCat("/expertd-test-", getpid(), "-", ++count_)) {
    fd_ = shm_open(key_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
    EXPECT_GE(fd_, 0) << key_;
    Resize(size);
  }
  ~ShmObject() {
    close(fd_);
    shm_unlink(key_.c_str());
  }
  ShmObject(const ShmObject&) = delete;
  ShmObject& operator=(const ShmObject&) = delete;

  const std::string& key() const { return key_; }
  void Resize(std::size_t size) { EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(size)), 0); }
  void Put(std::size_t offset, absl::string_view bytes) {
    EXPECT_EQ(pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset)), static_cast<ssize_t>(bytes.size()));
  }
  std::string Get(std::size_t offset, std::size_t size) {
    std::string bytes(size, '\0');
    bytes.resize(
        static_cast<std::size_t>(std::max<ssize_t>(0, pread(fd_, bytes.data(), size, static_cast<off_t>(offset)))));
    return bytes;
  }

 private:
  static inline int count_ = 0;
  const std::string key_;
  int fd_ = -1;
};

}  // namespace expertd::testing
