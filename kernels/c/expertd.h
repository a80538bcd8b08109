/* expertd in C99: engines, layers of published checkpoints, batches. The operations by themselves: expertd_ops.h.
 *
 * Every function that can fail answers an expertd_status; expertd_last_error() then says why, with field, value and
 * limit, until the next failing call of the same thread. Nothing throws, nothing ends the process. Outputs are written
 * only on EXPERTD_OK.
 *
 * Threads: any handle may be used from any thread, and several at once. Destroying a handle while another thread uses
 * it is the caller's mistake; in which order handles are destroyed does not matter.
 *
 * Structs start as all zeros ("{0}"), which means defaults. They do not change within one EXPERTD_ABI_VERSION, which is
 * also the library's soname; additions come as new functions. */
#ifndef EXPERTD_H_
#define EXPERTD_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EXPERTD_ABI_VERSION 1
/* What the library was built as: equal to the header's when they belong together. */
int32_t expertd_abi_version(void);
/* "0.1.0", static. */
const char* expertd_version(void);

/* The numbers of gRPC's status codes. */
typedef enum expertd_status {
  EXPERTD_OK = 0,
  EXPERTD_INVALID_ARGUMENT = 3,    /* a caller's mistake, or a broken checkpoint */
  EXPERTD_NOT_FOUND = 5,           /* no such folder, no such layer */
  EXPERTD_RESOURCE_EXHAUSTED = 8,  /* does not fit now: memory, workspace, row buffers */
  EXPERTD_FAILED_PRECONDITION = 9, /* something the device needs is absent, such as code for it or a library */
  EXPERTD_UNIMPLEMENTED = 12,
  EXPERTD_INTERNAL = 13,    /* the device is lost, or a fault of ours */
  EXPERTD_UNAVAILABLE = 14, /* this build or this machine does not have the device */
} expertd_status;

/* Why this thread's last failing call failed: one line, cut at 1023 bytes; "" before any did. */
const char* expertd_last_error(void);

typedef enum expertd_dtype { EXPERTD_BF16 = 0, EXPERTD_F32 = 1 } expertd_dtype;

/* ---- checkpoints ---- */

/* Indices of the runnable MoE layers of the checkpoint in `dir`, ascending. Writes the first `capacity` of them to
 * `layers` (null when capacity is 0) and how many there are to `count`. */
expertd_status expertd_checkpoint_layers(const char* dir, int64_t* layers, size_t capacity, size_t* count);

/* ---- engines ---- */

typedef struct expertd_engine expertd_engine; /* everything that computes on one device */

typedef struct expertd_engine_options {
  int32_t threads;          /* of the CPU engine; 0: one for each core of this process */
  int64_t max_batch_rows;   /* rows computed together, larger batches run in chunks; 0: the engine's default */
  int64_t row_buffer_bytes; /* budget of expertd_rows_acquire; 0: the engine's default */
  const char* path;         /* null or "auto": the fastest that keeps a row's bits independent of its batch. CUDA: also
                             * "sorted"; "batched", which does not keep them (bf16 and f32 weights only, wants cuBLAS);
                             * "fp8-rows": rows are quantised to e4m3, which costs 4e-2 (fp8 weights and Hopper only) */
} expertd_engine_options;

/* `device` is "cpu" or "cuda:<index>"; `options` may be null. */
expertd_status expertd_engine_create(const char* device, const expertd_engine_options* options,
                                     expertd_engine** engine);
/* Null is allowed. Device memory goes when the engine's last layer and row buffer has gone too. */
void expertd_engine_destroy(expertd_engine* engine);

typedef struct expertd_engine_info {
  const char* device;      /* "cpu", "cuda:0"; strings live as long as the engine */
  const char* description; /* "AMD EPYC, AVX-512 BF16, 2 threads" */
  const char* numerics_id; /* equal ids and equal fingerprints: equal bits */
  int32_t concurrency;     /* expertd_run calls that make progress at once; more wait */
  int64_t max_batch_rows;
  int64_t max_k; /* largest expertd_segment.k */
} expertd_engine_info;
expertd_status expertd_engine_describe(const expertd_engine* engine, expertd_engine_info* info);

/* ---- layers ---- */

typedef struct expertd_layer expertd_layer; /* resident on its engine's device, immutable */

/* Reads, checks and uploads one layer of the checkpoint in `dir`. Blocks; layers may be loaded while others run. */
expertd_status expertd_layer_load(expertd_engine* engine, const char* dir, int64_t index, expertd_layer** layer);
/* Null is allowed. */
void expertd_layer_unload(expertd_layer* layer);

typedef struct expertd_layer_info {
  const char* name;        /* "<folder>/<index>"; strings live as long as the layer */
  const char* fingerprint; /* of its spec and weights */
  const char* path;        /* how it is computed: "cpu-avx512", "sorted", ... */
  int64_t hidden_size, num_experts, experts_per_token, intermediate_size;
  int64_t shared_intermediate_size; /* 0: no shared expert */
  int64_t weight_bytes;             /* resident */
} expertd_layer_info;
expertd_status expertd_layer_describe(const expertd_layer* layer, expertd_layer_info* info);

/* ---- row buffers: optional. On CUDA they are page-locked, so that copies overlap other batches' work ---- */

typedef struct expertd_rows expertd_rows;
/* At least `bytes` (> 0) of host memory, 64-byte aligned. */
expertd_status expertd_rows_acquire(expertd_engine* engine, size_t bytes, expertd_rows** rows);
void* expertd_rows_data(const expertd_rows* rows);
/* Null is allowed. */
void expertd_rows_release(expertd_rows* rows);

/* ---- batches ---- */

/* Some rows with one set of options. All memory is the host's. D, E and K are the layer's. */
typedef struct expertd_segment {
  int64_t rows;              /* 0 is allowed */
  const void* input;         /* [rows, D] input_dtype */
  void* output;              /* [rows, D] output_dtype, overlaps no input */
  int32_t input_dtype;       /* expertd_dtype */
  int32_t output_dtype;      /* expertd_dtype */
  int32_t no_shared;         /* not 0: without the layer's shared expert */
  int64_t k;                 /* 0: the layer's router chooses. Otherwise slots of each row, at most info.max_k */
  const int32_t* topk_ids;   /* [rows, k] in [-1, E), -1: an unused slot; no expert twice in a row */
  const float* topk_weights; /* [rows, k], finite, applied as given */
  int32_t* routed_ids;       /* null or [rows, K]: what the router chose (k = 0 only) */
  float* routed_weights;     /* likewise */
} expertd_segment;

/* Seconds in each stage of a batch. */
typedef struct expertd_stage_times {
  double stage_in, route, gemm, combine, stage_out;
} expertd_stage_times;

/* Computes `count` segments as one batch of one layer, on its engine; blocks until every output is written. A row's
 * bits depend on its values, the layer and its segment's options, never on its batch (but on the path "batched").
 * `times` may be null. On an error the outputs' contents are unspecified; ids and weights are checked before anything
 * is computed. */
expertd_status expertd_run(const expertd_layer* layer, const expertd_segment* segments, size_t count,
                           expertd_stage_times* times);

#ifdef __cplusplus
}
#endif
#endif /* EXPERTD_H_ */
