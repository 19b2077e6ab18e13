// Names that come from files, made fit for a one-line message.
#include "io/quote.h"

namespace minisgl {

std::string quote_name(std::string_view name) {
  constexpr std::size_t max_length = 120;
  std::string text = "'";
  for (const char c : name.substr(0, max_length)) text += (c >= ' ' && c <= '~') ? c : '?';
  if (name.size() > max_length) text += "...";
  return text + "'";
}

}  // namespace minisgl
