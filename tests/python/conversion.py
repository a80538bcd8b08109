"""Prints how fast float32 becomes bfloat16 and back: median of seven conversions of 64 MiB."""
import statistics
import time

import numpy as np
from expertd import from_bf16, to_bf16

values = np.random.default_rng(7).standard_normal(1 << 24, dtype=np.float32)
for name, convert, argument in (("to bf16", to_bf16, values), ("from bf16", from_bf16, to_bf16(values))):
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        convert(argument)
        seconds.append(time.perf_counter() - start)
    print(f"{name}: {values.nbytes / statistics.median(seconds) / 1e9:.2f} GB/s of float32")
