// Python's view of the native log.
#include <pybind11/pybind11.h>

#include <memory>

#include "bind/bind.h"
#include "core/log.h"

namespace py = pybind11;

namespace minisgl {
namespace {

// As in Python's logging.
int python_level(LogLevel level) {
  switch (level) {
    case LogLevel::debug: return 10;
    case LogLevel::info: return 20;
    case LogLevel::warning: return 30;
    case LogLevel::error: return 40;
  }
  return 40;
}

py::list take(LogTaker& self) {
  py::list list;
  for (const LogLine& line : self.take()) {
    // A path in it may be any bytes.
    PyObject* text = PyUnicode_DecodeUTF8(line.text.data(), static_cast<Py_ssize_t>(line.text.size()), "replace");
    if (text == nullptr) throw py::error_already_set();
    list.append(py::make_tuple(python_level(line.level), py::reinterpret_steal<py::str>(text)));
  }
  return list;
}

}  // namespace

void bind_log(py::module_& module) {
  py::class_<LogTaker>(module, "Log", "What native code has to say, from its construction to its destruction.")
      .def(py::init<>())
      .def("event_fd", &LogTaker::event_fd, "A descriptor that is readable while lines wait. It belongs to the log.")
      .def("take", &take, "All lines that wait: (level as in logging, text).");
}

}  // namespace minisgl
