// What a router of the server's loop keeps of the prompts that it sent.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if PY_VERSION_HEX < 0x030B0000
#include <longintrepr.h>
#endif

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <tuple>
#include <vector>

#include "bind/bind.h"
#include "cache/sent_prefixes.h"

namespace py = pybind11;

namespace minisgl {
namespace {

constexpr auto block = static_cast<std::int64_t>(SentPrefixes::kBlock);

std::vector<std::uint64_t> unpacked(const py::bytes& keys) {
  const std::string_view packed = keys;
  std::vector<std::uint64_t> result(packed.size() / sizeof(std::uint64_t));
  if (!result.empty()) std::memcpy(result.data(), packed.data(), result.size() * sizeof(std::uint64_t));
  return result;
}

// An integer of the usual size is read where it lies: a call for each would take three quarters of a decision's time.
std::int32_t read_token(PyObject* value) {
#if PY_VERSION_HEX >= 0x030C0000
  const auto* integer = reinterpret_cast<PyLongObject*>(value);
  if (PyLong_CheckExact(value) && PyUnstable_Long_IsCompact(integer)) {
    return static_cast<std::int32_t>(PyUnstable_Long_CompactValue(integer));
  }
#else
  if (PyLong_CheckExact(value) && Py_SIZE(value) == 1) {
    return static_cast<std::int32_t>(reinterpret_cast<PyLongObject*>(value)->ob_digit[0]);
  }
#endif
  const long token = PyLong_AsLong(value);
  if (token == -1 && PyErr_Occurred()) throw py::error_already_set();
  return static_cast<std::int32_t>(token);
}

// The items from `begin` on. A sequence that is no list or tuple is copied.
std::vector<std::int32_t> read_tokens(const py::sequence& tokens, std::size_t begin) {
  const auto items =
      py::reinterpret_steal<py::object>(PySequence_Fast(tokens.ptr(), "tokens must be a sequence of integers"));
  if (!items) throw py::error_already_set();
  const auto count = static_cast<std::size_t>(PySequence_Fast_GET_SIZE(items.ptr()));
  const std::span values(PySequence_Fast_ITEMS(items.ptr()), count);
  if (begin >= count) return {};
  std::vector<std::int32_t> result(count - begin);
  for (std::size_t i = begin; i < count; ++i) {
    result[i - begin] = read_token(values[i]);
  }
  return result;
}

py::bytes keys_of(const SentPrefixes& sent, std::string_view space, const py::sequence& tokens,
                  const py::bytes& known) {
  std::vector<std::uint64_t> keys = unpacked(known);
  sent.extend(space, read_tokens(tokens, keys.size() * SentPrefixes::kBlock), keys);
  return {reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(std::uint64_t)};
}

}  // namespace

void bind_routing(py::module_& module) {
  py::class_<SentPrefixes> sent(module, "SentPrefixes");
  sent.attr("BLOCK") = block;
  sent.def(py::init())
      .def("add", [](SentPrefixes& self, int replica, std::int64_t tokens) { self.add(replica, tokens / block); })
      .def("remove", &SentPrefixes::remove)
      .def("num_tokens", [](const SentPrefixes& self, int replica) { return block * self.num_blocks(replica); })
      .def("keys", &keys_of, py::arg("space"), py::arg("tokens"), py::arg("known") = py::bytes())
      .def("insert", [](SentPrefixes& self, int replica,
                        const py::bytes& keys) { return block * self.insert(replica, unpacked(keys)); })
      .def("matched", [](const SentPrefixes& self, int replica,
                         const py::bytes& keys) { return block * self.matched(replica, unpacked(keys)); })
      .def("set_load", &SentPrefixes::set_load)
      .def("take_turn", &SentPrefixes::take_turn)
      .def("choose",
           [](const SentPrefixes& self, const py::bytes& keys, const std::vector<int>& excluded) {
             const SentPrefixes::Choice choice = self.choose(unpacked(keys), excluded);
             return std::tuple(choice.least, choice.best, block * choice.num_blocks, choice.num_replicas);
           })
      .def("check", &SentPrefixes::check);
}

}  // namespace minisgl
