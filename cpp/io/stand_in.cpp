#include "io/stand_in.h"

#include <algorithm>
#include <cctype>
#include <string_view>

#include "core/error.h"

namespace minisgl {
namespace {

// `text` begins with `start`, which is in lower case.
bool begins_with(std::string_view text, std::string_view start) {
  return text.size() >= start.size() && std::equal(start.begin(), start.end(), text.begin(), [](char a, char b) {
           return a == static_cast<char>(std::tolower(static_cast<unsigned char>(b)));
         });
}

bool is_html(std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);  // a byte order mark
  text.remove_prefix(std::min(text.find_first_not_of(" \t\r\n"), text.size()));
  return begins_with(text, "<!doctype html") || begins_with(text, "<html");
}

}  // namespace

void refuse_stand_in(std::span<const std::byte> bytes, const std::string& name) {
  constexpr std::size_t enough = 1024;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), std::min(bytes.size(), enough));
  if (text.starts_with("version https://git-lfs.github.com/spec/")) {
    throw InputError(concat("'", name, "' is a Git LFS pointer, not the file itself: `git lfs pull` fetches that"));
  }
  if (is_html(text)) {
    throw InputError(
        concat("'", name, "' is an HTML page, not the file itself: download that again, logged in if need be"));
  }
}

}  // namespace minisgl
