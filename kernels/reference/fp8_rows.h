// Rows as a layer's experts see them where its engine quantises them (ExpertPath::kFp8Rows).
#pragma once

#include <cstdint>
#include <vector>

namespace expertd::reference {

// Rounds every row of `width` elements to bf16, and then lines of 128 of them (the last one may be shorter) to e4m3
// times the least power of two with which the greatest magnitude is at most 448, or 2^-126. A line with NaN or infinity
// is NaN.
void QuantiseFp8Rows(std::int64_t width, std::vector<double>& rows);

}  // namespace expertd::reference
