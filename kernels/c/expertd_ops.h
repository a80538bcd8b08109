/* The twelve operations of a Mixture-of-Experts layer in C99. What each computes, its arrays' shapes and its limits
 * stand in kernels/ops.h, under the same names; here a struct has the same fields, with 0 for a default.
 *
 * Each runs where expertd_launch says: on a CUDA device, enqueued on a stream, without allocating or waiting, so that
 * it can be captured in a graph; or on the host, in double precision and before it returns: slow and exact, what the
 * kernels are tested against. Pointers are of that device. Indices are checked on the host only; on a device, one
 * outside its contract reads or writes anywhere. */
#ifndef EXPERTD_OPS_H_
#define EXPERTD_OPS_H_

#include "expertd.h"

#ifdef __cplusplus
extern "C" {
#endif

#define EXPERTD_HOST (-1)

typedef struct expertd_launch {
  int32_t device;  /* EXPERTD_HOST, or a CUDA device as CUDA numbers them */
  void* stream;    /* cudaStream_t of that device; null: its legacy default stream */
  void* workspace; /* of ops that have a workspace query: device memory, 256-byte aligned, until the op is done */
  int64_t workspace_bytes; /* at least what the query says. The host needs none */
} expertd_launch;

typedef enum expertd_activation {
  EXPERTD_SILU = 0,
  EXPERTD_GELU = 1,
  EXPERTD_GELU_TANH = 2,
  EXPERTD_RELU = 3,
  EXPERTD_RELU2 = 4,
  EXPERTD_SWIGLU_OAI = 5 /* limit and alpha: 0 means gpt-oss's 7 and 1.702 */
} expertd_activation;

typedef enum expertd_score { EXPERTD_SOFTMAX = 0, EXPERTD_SIGMOID = 1, EXPERTD_RAW = 2 } expertd_score;
typedef enum expertd_group_score {
  EXPERTD_GROUPS_NONE = 0,
  EXPERTD_GROUPS_MAX = 1,
  EXPERTD_GROUPS_TOP2_SUM = 2
} expertd_group_score;
typedef enum expertd_weigh {
  EXPERTD_WEIGH_SCORE = 0,
  EXPERTD_WEIGH_SOFTMAX_OF_CHOSEN = 1,
  EXPERTD_WEIGH_SIGMOID_OF_CHOSEN = 2,
  EXPERTD_WEIGH_SPARSE_MIXER = 3
} expertd_weigh;
typedef enum expertd_renormalise {
  EXPERTD_RENORMALISE_NONE = 0,
  EXPERTD_RENORMALISE_SUM_PLUS_EPS = 1,
  EXPERTD_RENORMALISE_MAX_SUM_EPS = 2
} expertd_renormalise;

typedef struct expertd_routing_rule {
  int32_t score;               /* expertd_score */
  int32_t group_score;         /* expertd_group_score */
  int64_t n_group, topk_group; /* 0: 1 */
  int32_t weigh;               /* expertd_weigh */
  int32_t renormalise;         /* expertd_renormalise */
  float renormalise_eps;
  float scale; /* 0: 1 */
  float jitter_eps;
} expertd_routing_rule;

typedef struct expertd_activation_forward_args {
  int64_t m, f;
  int32_t activation; /* expertd_activation */
  float limit, alpha;
  int32_t interleaved;
  int32_t dtype;  /* expertd_dtype */
  const void* in; /* [M, 2F] */
  void* out;      /* [M, F] */
} expertd_activation_forward_args;

typedef struct expertd_activation_backward_args {
  int64_t m, f;
  int32_t activation;
  float limit, alpha;
  int32_t interleaved;
  int32_t dtype;
  const void* grad_out; /* [M, F] */
  const void* in;       /* [M, 2F] */
  void* grad_in;        /* [M, 2F], may be `in` */
} expertd_activation_backward_args;

typedef struct expertd_fused_topk_routing_args {
  int64_t n, e, k;
  expertd_routing_rule rule;
  const float* logits;          /* [N, E] */
  const float* correction_bias; /* [E] or null */
  float* weights;               /* [N, K] */
  int32_t* ids;                 /* [N, K] */
} expertd_fused_topk_routing_args;

typedef struct expertd_moe_align_block_size_args {
  int64_t slots, e, block;
  const int32_t* ids;     /* [S] */
  int32_t* counts;        /* [E] */
  int32_t* offsets;       /* [E + 1] */
  int32_t* sorted_slots;  /* [P], P = expertd_padded_slots(S, E, block) */
  int32_t* block_experts; /* [P / block] */
} expertd_moe_align_block_size_args;
/* Upper bound of the padded positions, a multiple of `block`. */
int64_t expertd_padded_slots(int64_t slots, int64_t e, int64_t block);

typedef struct expertd_fused_routing_scatter_args {
  int64_t n, d, e, k, max_tokens;
  int32_t dtype;
  const void* rows;   /* [N, D] */
  const int32_t* ids; /* [N, K] */
  void* batched;      /* [E, max_tokens, D] */
  int32_t* slot_pos;  /* [N * K] */
  int32_t* counts;    /* [E] */
  int32_t* overflow;  /* [1] */
} expertd_fused_routing_scatter_args;

typedef struct expertd_fused_gather_reduce_args {
  int64_t n, d, k, r;
  int32_t dtype, out_dtype;
  const void* expert_out;  /* [R, D] */
  const int32_t* slot_row; /* [N * K] */
  const float* weights;    /* [N, K] or null */
  void* out;               /* [N, D] */
} expertd_fused_gather_reduce_args;

typedef struct expertd_fused_weighted_scatter_args {
  int64_t n, d, k, r;
  int32_t dtype;
  const void* grad_out;    /* [N, D] */
  const int32_t* slot_row; /* [N * K] */
  const float* weights;    /* [N, K] or null */
  void* grad_expert;       /* [R, D] */
} expertd_fused_weighted_scatter_args;

typedef struct expertd_fused_routing_weight_grad_args {
  int64_t n, d, k, r;
  int32_t dtype;
  const void* expert_out;  /* [R, D] */
  const void* grad_out;    /* [N, D] */
  const int32_t* slot_row; /* [N * K] */
  float* grad_weights;     /* [N, K] */
} expertd_fused_routing_weight_grad_args;

typedef struct expertd_fused_dispatch_pack_args {
  int64_t n, d, e, k, shards;
  const void* rows;   /* [N, D] bf16 */
  const int32_t* ids; /* [N, K] */
  void* packed;       /* [S, D + 8] bf16 */
  int32_t* source;    /* [S] */
  int32_t* counts;    /* [shards] */
} expertd_fused_dispatch_pack_args;

typedef struct expertd_moe_grouped_gemm_args {
  int64_t positions, e, in, out_features;
  int32_t dtype;
  const void* x;          /* [*, in] */
  const int32_t* gather;  /* [P] or null */
  const int32_t* offsets; /* [E + 1] */
  const void* w;          /* [E, out, in] */
  void* out;              /* [P, out] */
} expertd_moe_grouped_gemm_args;

typedef struct expertd_fused_moe_forward_args {
  int64_t n, d, e, k, f;
  int32_t activation;
  float limit, alpha;
  int32_t weight_on_input;
  int32_t dtype, out_dtype;
  const void* rows;     /* [N, D] */
  const int32_t* ids;   /* [N, K] */
  const float* weights; /* [N, K] */
  const void* gate_up;  /* [E, 2F, D], gate first */
  const void* down;     /* [E, D, F] */
  void* out;            /* [N, D] */
} expertd_fused_moe_forward_args;

typedef struct expertd_moe_weight_grad_args {
  int64_t positions, e, in, out_features;
  int32_t dtype, w_dtype;
  const void* grad_out;   /* [P, out] */
  const void* x;          /* [P, in] */
  const int32_t* offsets; /* [E + 1] */
  void* grad_w;           /* [E, out, in] */
} expertd_moe_weight_grad_args;

#define EXPERTD_OP(op) expertd_status expertd_##op(const expertd_##op##_args* args, const expertd_launch* launch)
EXPERTD_OP(activation_forward);
EXPERTD_OP(activation_backward);
EXPERTD_OP(fused_topk_routing);
EXPERTD_OP(moe_align_block_size);
EXPERTD_OP(fused_routing_scatter);
EXPERTD_OP(fused_gather_reduce);
EXPERTD_OP(fused_weighted_scatter);
EXPERTD_OP(fused_routing_weight_grad);
EXPERTD_OP(fused_dispatch_pack);
EXPERTD_OP(moe_grouped_gemm);
EXPERTD_OP(fused_moe_forward);
EXPERTD_OP(moe_weight_grad);
#undef EXPERTD_OP

/* Bytes of workspace that an op wants on a CUDA device for these sizes; pointers may be null. They grow with the sizes:
 * what serves a capacity serves every smaller call. The other ops want none. UNAVAILABLE in a build without CUDA. */
#define EXPERTD_WORKSPACE(op) expertd_status expertd_##op##_workspace(const expertd_##op##_args* args, int64_t* bytes)
EXPERTD_WORKSPACE(moe_align_block_size);
EXPERTD_WORKSPACE(fused_routing_scatter);
EXPERTD_WORKSPACE(fused_weighted_scatter);
EXPERTD_WORKSPACE(fused_dispatch_pack);
EXPERTD_WORKSPACE(fused_moe_forward);
#undef EXPERTD_WORKSPACE

/* ---- training: a forward that keeps what backward needs, and backward (kernels/cuda/moe_backward.h) ---- */

typedef enum expertd_recompute {
  EXPERTD_RECOMPUTE_NOTHING = 0,    /* saved: maps, both products, the activation */
  EXPERTD_RECOMPUTE_ACTIVATIONS = 1 /* saved: maps and the first product */
} expertd_recompute;

/* fused_moe_forward, the same bits, that also fills `saved`: device memory, 256-byte aligned. The host needs none. */
typedef struct expertd_moe_forward_args {
  expertd_fused_moe_forward_args forward;
  int32_t recompute; /* expertd_recompute */
  void* saved;
  int64_t saved_bytes;
} expertd_moe_forward_args;
expertd_status expertd_moe_forward(const expertd_moe_forward_args* args, const expertd_launch* launch);
/* Bytes of `saved` and of the launch's workspace on a CUDA device; pointers in the args may be null. */
expertd_status expertd_moe_forward_sizes(const expertd_moe_forward_args* args, int64_t* saved_bytes,
                                         int64_t* workspace_bytes);

/* Gradients of sum(grad_out * out). */
typedef struct expertd_moe_backward_args {
  expertd_fused_moe_forward_args forward; /* what moe_forward saw; `out` is not used */
  int32_t recompute;                      /* as then */
  int32_t w_dtype;                        /* expertd_dtype of grad_gate_up and grad_down */
  void* saved;                            /* what it filled */
  int64_t saved_bytes;
  const void* grad_out; /* [N, D] */
  void* grad_rows;      /* [N, D] */
  float* grad_weights;  /* [N, K], 0 for slots that are not held */
  void* grad_gate_up;   /* [E, 2F, D], or null: not wanted */
  void* grad_down;      /* [E, D, F], or null: not wanted */
} expertd_moe_backward_args;
expertd_status expertd_moe_backward(const expertd_moe_backward_args* args, const expertd_launch* launch);
/* On the CUDA device `device`: kernels differ between them. */
expertd_status expertd_moe_backward_workspace(const expertd_moe_backward_args* args, int32_t device, int64_t* bytes);

#ifdef __cplusplus
}
#endif
#endif /* EXPERTD_OPS_H_ */
