// Many threads at one layer of the C library: they take turns, and each finds its own rows and its own error.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "expertd.h"

namespace {

TEST(CAbiThreadsTest, CallersTakeTurnsAndKeepTheirOwnErrors) {
  const std::string dir = std::string(EXPERTD_TEST_DATA) + "/golden/olmoe";
  const expertd_engine_options options = {.threads = 2};
  expertd_engine* engine = nullptr;
  expertd_layer* layer = nullptr;
  expertd_layer_info info = {};
  ASSERT_EQ(expertd_engine_create("cpu", &options, &engine), EXPERTD_OK) << expertd_last_error();
  ASSERT_EQ(expertd_layer_load(engine, dir.c_str(), 0, &layer), EXPERTD_OK) << expertd_last_error();
  ASSERT_EQ(expertd_layer_describe(layer, &info), EXPERTD_OK);

  constexpr int kThreads = 4, kRuns = 25;
  std::vector<std::vector<float>> outputs(kThreads);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const auto d = static_cast<std::size_t>(info.hidden_size);
      std::vector<float> in(d, static_cast<float>(t + 1)), out(d);
      expertd_segment row = {.rows = 1, .input = in.data(), .output = out.data()};
      row.input_dtype = row.output_dtype = EXPERTD_F32;
      expertd_segment wrong = row;
      wrong.rows = -(t + 1);
      for (int run = 0; run < kRuns; ++run) {
        ASSERT_EQ(expertd_run(layer, &row, 1, nullptr), EXPERTD_OK) << expertd_last_error();
        if (run == 0) outputs[t] = out;
        EXPECT_EQ(out, outputs[t]);
        EXPECT_EQ(expertd_run(layer, &wrong, 1, nullptr), EXPERTD_INVALID_ARGUMENT);
        EXPECT_NE(std::strstr(expertd_last_error(), ("rows: " + std::to_string(wrong.rows)).c_str()), nullptr)
            << expertd_last_error();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(outputs[0], outputs[1]);
  expertd_layer_unload(layer);
  expertd_engine_destroy(engine);
}

}  // namespace
