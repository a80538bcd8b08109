/* The C ABI from C99: engine, layer, batches and operations, and what every kind of mistake answers.
 * usage: c_abi_test CHECKPOINT_DIR [DEVICE] */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "expertd.h"
#include "expertd_ops.h"

static int failures = 0;

#define EXPECT(condition)                                                                                       \
  do {                                                                                                          \
    if (!(condition)) {                                                                                         \
      fprintf(stderr, "%s:%d: %s\n    last error: %s\n", __FILE__, __LINE__, #condition, expertd_last_error()); \
      ++failures;                                                                                               \
    }                                                                                                           \
  } while (0)
#define EXPECT_FAILS(call, code, text) EXPECT((call) == (code) && strstr(expertd_last_error(), text) != NULL)

enum { kRows = 5 };

static float* random_floats(size_t count) {
  float* values = malloc(count * sizeof(float));
  uint32_t state = 12345;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values[i] = (float)(state >> 8) / (float)(1 << 23) - 1.0f;
  }
  return values;
}

static void test_mistakes(expertd_engine* engine, const char* dir) {
  expertd_engine* none = NULL;
  expertd_layer* no_layer = NULL;
  expertd_rows* rows = NULL;
  size_t count = 0;
  const expertd_engine_options negative = {.threads = -1};
  EXPECT_FAILS(expertd_engine_create("tpu", NULL, &none), EXPERTD_INVALID_ARGUMENT, "device: 'tpu'");
  EXPECT_FAILS(expertd_engine_create("cuda:4711", NULL, &none), EXPERTD_UNAVAILABLE, "cuda:4711");
  EXPECT_FAILS(expertd_engine_create(NULL, NULL, &none), EXPERTD_INVALID_ARGUMENT, "device: is null");
  EXPECT_FAILS(expertd_engine_create("cpu", NULL, NULL), EXPERTD_INVALID_ARGUMENT, "engine: is null");
  EXPECT_FAILS(expertd_engine_create("cpu", &negative, &none), EXPERTD_INVALID_ARGUMENT, "threads: -1");
  const expertd_engine_options sideways = {.path = "sideways"}, batched = {.path = "batched"};
  EXPECT_FAILS(expertd_engine_create("cpu", &sideways, &none), EXPERTD_INVALID_ARGUMENT, "path: 'sideways'");
  EXPECT_FAILS(expertd_engine_create("cpu", &batched, &none), EXPERTD_INVALID_ARGUMENT, "path: the cpu engine");
  EXPECT_FAILS(expertd_checkpoint_layers("/nowhere", NULL, 0, &count), EXPERTD_NOT_FOUND, "/nowhere");
  EXPECT_FAILS(expertd_checkpoint_layers(dir, NULL, 1, &count), EXPERTD_INVALID_ARGUMENT, "layers: is null");
  EXPECT_FAILS(expertd_layer_load(engine, dir, 99, &no_layer), EXPERTD_NOT_FOUND, "99");
  EXPECT_FAILS(expertd_layer_load(NULL, dir, 0, &no_layer), EXPERTD_INVALID_ARGUMENT, "engine: is null");
  EXPECT_FAILS(expertd_rows_acquire(engine, 0, &rows), EXPERTD_INVALID_ARGUMENT, "bytes: 0");
  EXPECT_FAILS(expertd_rows_acquire(engine, (size_t)1 << 50, &rows), EXPERTD_RESOURCE_EXHAUSTED, "");
  EXPECT(none == NULL && no_layer == NULL && rows == NULL);
  expertd_engine_destroy(NULL);
  expertd_layer_unload(NULL);
  expertd_rows_release(NULL);
}

/* Every row by itself, as routed by the layer, must give the bits that it has in a batch of two segments. */
static void test_batches(const expertd_layer* layer, const expertd_layer_info* info) {
  const size_t d = (size_t)info->hidden_size, k = (size_t)info->experts_per_token;
  float *in = random_floats(kRows * d), *out = malloc(kRows * d * sizeof(float)), *alone = malloc(d * sizeof(float));
  int32_t* ids = malloc(kRows * k * sizeof(int32_t));
  float* weights = malloc(kRows * k * sizeof(float));
  expertd_stage_times times = {0};
  expertd_segment batch[2] = {{0}, {0}};
  for (int i = 0; i < 2; ++i) {
    const size_t first = i == 0 ? 0 : 2, n = i == 0 ? 2 : kRows - 2;
    batch[i].rows = (int64_t)n;
    batch[i].input = in + first * d;
    batch[i].output = out + first * d;
    batch[i].input_dtype = batch[i].output_dtype = EXPERTD_F32;
    batch[i].routed_ids = ids + first * k;
    batch[i].routed_weights = weights + first * k;
  }
  EXPECT(expertd_run(layer, batch, 2, &times) == EXPERTD_OK);
  EXPECT(times.gemm > 0);
  for (size_t row = 0; row < kRows; ++row) {
    expertd_segment one = {0};
    one.rows = 1;
    one.input = in + row * d;
    one.output = alone;
    one.input_dtype = one.output_dtype = EXPERTD_F32;
    one.k = (int64_t)k;
    one.topk_ids = ids + row * k;
    one.topk_weights = weights + row * k;
    EXPECT(expertd_run(layer, &one, 1, NULL) == EXPERTD_OK);
    EXPECT(memcmp(alone, out + row * d, d * sizeof(float)) == 0);
  }
  EXPECT(expertd_run(layer, NULL, 0, NULL) == EXPERTD_OK);

  expertd_segment bad = batch[0];
  bad.routed_ids = NULL, bad.routed_weights = NULL;
  bad.k = (int64_t)k, bad.topk_ids = ids, bad.topk_weights = weights;
  ids[k] = (int32_t)info->num_experts;
  EXPECT_FAILS(expertd_run(layer, &bad, 1, NULL), EXPERTD_INVALID_ARGUMENT, "segments[0].topk_ids[1,0]=");
  bad.topk_ids = NULL;
  EXPECT_FAILS(expertd_run(layer, &bad, 1, NULL), EXPERTD_INVALID_ARGUMENT, "topk_ids: is null");
  bad.k = 65;
  EXPECT_FAILS(expertd_run(layer, &bad, 1, NULL), EXPERTD_INVALID_ARGUMENT, "k: 65 is outside 0..");
  bad = batch[1];
  bad.rows = -1;
  EXPECT_FAILS(expertd_run(layer, &bad, 1, NULL), EXPERTD_INVALID_ARGUMENT, "rows: -1");
  bad = batch[1];
  bad.output_dtype = 7;
  EXPECT_FAILS(expertd_run(layer, &bad, 1, NULL), EXPERTD_INVALID_ARGUMENT, "output_dtype: 7");
  EXPECT_FAILS(expertd_run(NULL, NULL, 0, NULL), EXPERTD_INVALID_ARGUMENT, "layer: is null");
  free(in), free(out), free(alone), free(ids), free(weights);
}

static void test_ops(void) {
  const expertd_launch host = {.device = EXPERTD_HOST};
  /* One expert with D = F = 1: out = weight * down * silu(gate * x) * up * x. */
  const float rows[2] = {0.5f, -2.0f}, weights[2] = {0.25f, 1.0f}, gate_up[2] = {3.0f, -1.5f}, down[1] = {2.0f};
  const int32_t ids[2] = {0, -1};
  float out[2] = {NAN, NAN};
  expertd_fused_moe_forward_args moe = {0};
  moe.n = 2, moe.d = moe.e = moe.k = moe.f = 1;
  moe.dtype = moe.out_dtype = EXPERTD_F32;
  moe.rows = rows, moe.ids = ids, moe.weights = weights, moe.gate_up = gate_up, moe.down = down, moe.out = out;
  EXPECT(expertd_fused_moe_forward(&moe, &host) == EXPERTD_OK);
  const double gate = 1.5, want = 0.25 * 2.0 * (gate / (1 + exp(-gate))) * (-0.75);
  EXPECT(fabs(out[0] - want) < 1e-6);
  EXPECT(out[1] == 0.0f);

  /* The same with gradients: of the weight, what it multiplies; of a slot that is not used, nothing. */
  const float grad_out[2] = {1.0f, 1.0f};
  float grad_rows[2] = {NAN, NAN}, grad_weights[2] = {NAN, NAN};
  expertd_moe_forward_args forward = {.forward = moe};
  out[0] = NAN;
  EXPECT(expertd_moe_forward(&forward, &host) == EXPERTD_OK);
  EXPECT(fabs(out[0] - want) < 1e-6);
  expertd_moe_backward_args backward = {.forward = moe, .grad_out = grad_out, .grad_rows = grad_rows};
  EXPECT_FAILS(expertd_moe_backward(&backward, &host), EXPERTD_INVALID_ARGUMENT, "grad_weights");
  backward.grad_weights = grad_weights;
  EXPECT(expertd_moe_backward(&backward, &host) == EXPERTD_OK);
  EXPECT(fabs(grad_weights[0] - want / 0.25) < 1e-5 && grad_weights[1] == 0.0f);
  EXPECT(fabs(grad_rows[0]) > 0.1 && grad_rows[1] == 0.0f);
  backward.recompute = 2;
  EXPECT_FAILS(expertd_moe_backward(&backward, &host), EXPERTD_INVALID_ARGUMENT, "recompute: 2");

  const float logits[4] = {0.0f, 1.0f, 1.0f, -1.0f};
  float chosen[2];
  int32_t experts[2];
  expertd_fused_topk_routing_args topk = {0};
  topk.n = 1, topk.e = 4, topk.k = 2;
  topk.rule.weigh = EXPERTD_WEIGH_SOFTMAX_OF_CHOSEN;
  topk.logits = logits, topk.weights = chosen, topk.ids = experts;
  EXPECT(expertd_fused_topk_routing(&topk, &host) == EXPERTD_OK);
  EXPECT(experts[0] == 1 && experts[1] == 2 && chosen[0] == 0.5f && chosen[1] == 0.5f);

  topk.rule.score = 3;
  EXPECT_FAILS(expertd_fused_topk_routing(&topk, &host), EXPERTD_INVALID_ARGUMENT, "rule.score: 3");
  moe.ids = NULL;
  EXPECT_FAILS(expertd_fused_moe_forward(&moe, &host), EXPERTD_INVALID_ARGUMENT, "ids: is null");
  EXPECT_FAILS(expertd_fused_moe_forward(NULL, &host), EXPERTD_INVALID_ARGUMENT, "args: is null");
  EXPECT_FAILS(expertd_fused_moe_forward(&moe, NULL), EXPERTD_INVALID_ARGUMENT, "launch: is null");
  const expertd_launch nowhere = {.device = -2}, no_such = {.device = 4711};
  moe.ids = ids;
  EXPECT_FAILS(expertd_fused_moe_forward(&moe, &nowhere), EXPERTD_INVALID_ARGUMENT, "launch.device: -2");
  EXPECT_FAILS(expertd_fused_moe_forward(&moe, &no_such), EXPERTD_UNAVAILABLE, "launch.device");

  int64_t small = 0, large = 0;
  moe.n = 16;
  const expertd_status sized = expertd_fused_moe_forward_workspace(&moe, &small);
  EXPECT(sized == EXPERTD_OK || sized == EXPERTD_UNAVAILABLE); /* a build without CUDA */
  if (sized == EXPERTD_OK) {
    moe.n = 4096;
    EXPECT(expertd_fused_moe_forward_workspace(&moe, &large) == EXPERTD_OK && small > 0 && large > small);
  }
  EXPECT_FAILS(expertd_fused_moe_forward_workspace(&moe, NULL), EXPERTD_INVALID_ARGUMENT, "bytes: is null");
  EXPECT(expertd_padded_slots(3, 2, 8) == 24);
}

int main(int argc, char** argv) {
  const char* const device = argc > 2 ? argv[2] : "cpu";
  if (argc < 2) return 2;
  EXPECT(expertd_abi_version() == EXPERTD_ABI_VERSION);
  EXPECT(strchr(expertd_version(), '.') != NULL);
  EXPECT(strcmp(expertd_last_error(), "") == 0);

  const expertd_engine_options options = {.threads = 2};
  expertd_engine* engine = NULL;
  expertd_engine_info about = {0};
  if (expertd_engine_create(device, &options, &engine) != EXPERTD_OK) {
    fprintf(stderr, "%s: %s\n", device, expertd_last_error());
    return 1;
  }
  EXPECT(expertd_engine_describe(engine, &about) == EXPERTD_OK);
  EXPECT(strcmp(about.device, device) == 0 && about.concurrency >= 1 && about.max_k >= 1);

  int64_t layers[2] = {-1, -1};
  size_t count = 0;
  EXPECT(expertd_checkpoint_layers(argv[1], layers, 2, &count) == EXPERTD_OK && count >= 1 && layers[0] >= 0);
  expertd_layer* layer = NULL;
  expertd_layer_info info = {0};
  EXPECT(expertd_layer_load(engine, argv[1], layers[0], &layer) == EXPERTD_OK);
  EXPECT(expertd_layer_describe(layer, &info) == EXPERTD_OK);
  EXPECT(info.hidden_size > 0 && info.weight_bytes > 0 && strlen(info.fingerprint) > 0 && strlen(info.path) > 0);

  expertd_rows* rows = NULL;
  EXPECT(expertd_rows_acquire(engine, 100, &rows) == EXPERTD_OK);
  EXPECT(rows != NULL && (uintptr_t)expertd_rows_data(rows) % 64 == 0);
  test_mistakes(engine, argv[1]);
  expertd_engine_destroy(engine); /* the layer and the rows keep what they need */
  memset(expertd_rows_data(rows), 1, 100);
  test_batches(layer, &info);
  test_ops();
  expertd_layer_unload(layer);
  expertd_rows_release(rows);

  if (failures == 0) printf("c_abi_test: passed on %s\n", device);
  return failures == 0 ? 0 : 1;
}
