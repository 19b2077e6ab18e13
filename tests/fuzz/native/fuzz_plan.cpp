// Frames that a rank gets from rank 0.
#include <algorithm>

#include "engine/plan_codec.h"
#include "refused_or_read.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace minisgl;
  testing::read_or_refuse([&] {
    const auto bytes = std::as_bytes(std::span(data, size));
    const PlanLimits limits{.num_pages = 64,
                            .num_host_pages = 16,
                            .page_size = 4,
                            .max_model_len = 256,
                            .max_batch_tokens = 64,
                            .max_logits = 48,
                            .vocab_size = 50,
                            .num_adapters = 3};
    // What was understood says the same when it is said and read again.
    PlanEncoder once, twice;
    PlanDecoder(limits).decode(bytes, once);
    PlanDecoder(limits).decode(once.frame(), twice);
    if (!std::ranges::equal(once.frame(), twice.frame())) std::abort();
  });
  return 0;
}
