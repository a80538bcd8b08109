/* The C library as found by CMake: loads a layer and runs a row of zeros, which every expert maps to zeros. */
#include <expertd.h>
#include <expertd_ops.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  expertd_engine* engine = NULL;
  expertd_layer* layer = NULL;
  expertd_layer_info info = {0};
  if (argc != 2 || expertd_abi_version() != EXPERTD_ABI_VERSION) return 2;
  if (expertd_engine_create("cpu", NULL, &engine) != EXPERTD_OK ||
      expertd_layer_load(engine, argv[1], 0, &layer) != EXPERTD_OK ||
      expertd_layer_describe(layer, &info) != EXPERTD_OK) {
    fprintf(stderr, "%s\n", expertd_last_error());
    return 1;
  }
  float* in = calloc((size_t)info.hidden_size, sizeof(float));
  float* out = malloc((size_t)info.hidden_size * sizeof(float));
  expertd_segment row = {0};
  row.rows = 1, row.input = in, row.output = out;
  row.input_dtype = row.output_dtype = EXPERTD_F32;
  out[0] = 1.0f;
  if (expertd_run(layer, &row, 1, NULL) != EXPERTD_OK || out[0] != 0.0f) {
    fprintf(stderr, "%s\n", expertd_last_error());
    return 1;
  }
  printf("expertd %s: %s through the C library\n", expertd_version(), info.name);
  free(in), free(out);
  expertd_layer_unload(layer);
  expertd_engine_destroy(engine);
  return 0;
}
