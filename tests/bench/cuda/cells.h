// The cells of the table: small ops, and the products of whole layers.
#pragma once

#include <vector>

#include "tests/bench/cuda/layers.h"
#include "tests/bench/cuda/timer.h"

namespace expertd::bench {

void RunRoutingCells(Timer& timer);
void RunRowCells(Timer& timer);
// grouped GEMM with each large tile, the sorted forward at every N; five published layers.
void RunGemmCells(Timer& timer, const std::vector<Layer>& layers);
// The fused kernel of Hopper with each tile: what ChooseFusedTile is made from.
void RunFusedTileCells(Timer& timer, const std::vector<Layer>& layers);
// With the chosen tile alone, under even and skewed routing.
void RunSkewCells(Timer& timer, const std::vector<Layer>& layers);
// Each tile for fp8 and mxfp4 weights, of layers that are published so.
void RunCodeTileCells(Timer& timer);
// fp8 weights with rows in fp8, whose quantisation counts.
void RunFp8RowCells(Timer& timer);
// The weight gradient, and all gradients, of the same layers.
void RunBackwardCells(Timer& timer, const std::vector<Layer>& layers);
// The batched path beside the cuBLAS products in it, where cuBLAS is installed.
void RunBatchedCells(Timer& timer, const std::vector<Layer>& layers);

}  // namespace expertd::bench
