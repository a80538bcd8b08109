// A data race on purpose: two threads add to one plain integer. The ThreadSanitizer build must end it with an error,
// which proves that the sanitizer watches our code at all. Never registered with ctest: tests/run.sh runs it and
// expects failure.
#include <cstdio>
#include <thread>

int main() {
  int shared = 0;
  auto add = [&shared] {
    for (int i = 0; i < 100000; ++i) shared = shared + 1;
  };
  std::thread first(add);
  std::thread second(add);
  first.join();
  second.join();
  std::printf("%d\n", shared);
  return 0;
}
