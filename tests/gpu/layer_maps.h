// The maps of a layer on the device, as kernels that pad nothing want them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "tests/gpu/device.h"

namespace expertd::testing {

// Owns the slots' experts and what a sort makes of them. Slots are [n, k]; positions are slots sorted by expert.
class LayerMaps {
 public:
  // `host_ids`: the expert of each slot below `experts`, -1: none.
  LayerMaps(const std::vector<std::int32_t>& host_ids, std::int64_t experts)
      : ids(host_ids),
        counts(experts),
        offsets(experts + 1),
        sorted_slots(Slots(host_ids)),
        positions(Slots(host_ids)),
        memory_(ScratchBytes(Slots(host_ids), experts)) {
    cuda::Scratch scratch(memory_.data());
    sort = cuda::PlanSort(Slots(host_ids), experts, scratch);
    sort.ids = ids.data(), sort.counts = counts.data(), sort.offsets = offsets.data();
    sort.sorted_slots = sorted_slots.data(), sort.positions = positions.data();
  }

  const DeviceArray<std::int32_t> ids;           // [slots]
  const DeviceArray<std::int32_t> counts;        // [experts]
  const DeviceArray<std::int32_t> offsets;       // [experts + 1]
  const DeviceArray<std::int32_t> sorted_slots;  // [slots]
  const DeviceArray<std::int32_t> positions;     // [slots]
  cuda::ExpertSortLaunch sort;                   // makes the others of `ids`

 private:
  static std::int64_t Slots(const std::vector<std::int32_t>& ids) { return static_cast<std::int64_t>(ids.size()); }
  static std::int64_t ScratchBytes(std::int64_t slots, std::int64_t experts) {
    cuda::Scratch sizes;
    cuda::PlanSort(slots, experts, sizes);
    return sizes.used() + 256;
  }
  const DeviceArray<std::byte> memory_;
};

}  // namespace expertd::testing
