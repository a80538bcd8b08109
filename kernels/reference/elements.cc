#include "kernels/reference/elements.h"

#include <bit>
#include <cmath>

namespace expertd::reference {

std::uint16_t DoubleToBf16(double value) {
  auto rounded = static_cast<float>(value);
  if (std::isfinite(rounded) && rounded != value) {
    // Round to odd on the way, so that only the second rounding counts (Boldo, Melquiond 2008).
    if (std::fabs(rounded) > std::fabs(value)) rounded = std::nextafterf(rounded, 0.0f);
    rounded = std::bit_cast<float>(std::bit_cast<std::uint32_t>(rounded) | 1u);
  }
  return F32ToBf16(rounded);
}

}  // namespace expertd::reference
