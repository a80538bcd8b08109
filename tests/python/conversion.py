"""Prints how fast float32 becomes bfloat16 and back: median of seven conversions of 64 MiB, by the wall's clock and by the thread's own,
which stands still while other programs have the core."""
import statistics
import time

import numpy as np
from expertd import from_bf16, to_bf16

values = np.random.default_rng(7).standard_normal(1 << 24, dtype=np.float32)
for name, convert, argument in (("to bf16", to_bf16, values), ("from bf16", from_bf16, to_bf16(values))):
    rates = []
    for clock in (time.perf_counter, time.thread_time):
        seconds = []
        for _ in range(7):
            start = clock()
            convert(argument)
            seconds.append(clock() - start)
        rates.append(values.nbytes / statistics.median(seconds) / 1e9)
    print(f"{name}: {rates[0]:.2f} GB/s of float32, {rates[1]:.2f} by the thread's clock")
