// Names that come from files, made fit for a one-line message.
#pragma once

#include <string>
#include <string_view>

namespace minisgl {

// 'name' in quotes: bytes outside printable ASCII become '?', more than 120 characters are cut with "...".
std::string quote_name(std::string_view name);

}  // namespace minisgl
