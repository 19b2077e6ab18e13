// Frames that a rank gets from rank 0.
#include <algorithm>

#include "engine/plan_codec.h"
#include "refused_or_read.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace minisgl;
  testing::read_or_refuse([&] {
    const auto bytes = std::as_bytes(std::span(data, size));
    PlanDecoder decoder({.num_pages = 64,
                         .page_size = 4,
                         .max_model_len = 256,
                         .max_batch_tokens = 64,
                         .max_logits = 48,
                         .vocab_size = 50,
                         .num_adapters = 3});
    // What was understood says the same when it is said and read again.
    PlanEncoder once, twice;
    decoder.decode(bytes, once);
    decoder.decode(once.frame(), twice);
    if (!std::ranges::equal(once.frame(), twice.frame())) std::abort();
  });
  return 0;
}
